"""LoRAs: every spelling of the names, alpha and rank, convolutions, what is refused, and that none is none again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import CheckpointError, InputError
from platemark.optimize.checkpoint import Checkpoint, open_checkpoint
from platemark.optimize.lora import Lora, merge
from platemark.optimize.lora_file import read_lora
from platemark.optimize.weights import read_float32

pytestmark = pytest.mark.torch

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
RANK = 3


def flat(name: str) -> str:
    return name.replace(".", "_")


KOHYA = {
    "unet": lambda m: (f"lora_unet_{flat(m)}.lora_down.weight", f"lora_unet_{flat(m)}.lora_up.weight"),
    "text_encoder": lambda m: (f"lora_te_{flat(m)}.lora_down.weight", f"lora_te_{flat(m)}.lora_up.weight"),
}
PEFT = {part: (lambda m, part=part: (f"{part}.{m}.lora_A.weight", f"{part}.{m}.lora_B.weight")) for part in ("unet", "text_encoder")}
OLD = {
    "unet": lambda m: tuple(f"unet.{m.replace('.to_', '.processor.to_').removesuffix('.0')}_lora.{side}.weight" for side in ("down", "up")),
    "text_encoder": lambda m: tuple(f"text_encoder.{m}.lora_linear_layer.{side}.weight" for side in ("down", "up")),
}
ADAPTER = {
    part: (lambda m: (f"base_model.model.{m}.base_layer.lora_A.default.weight", f"base_model.model.{m}.base_layer.lora_B.default.weight"))
    for part in ("unet", "text_encoder")
}


def save(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata=metadata)
    return path


def weight(checkpoint: Checkpoint, part: str, module: str) -> Any:
    tensors = checkpoint.parts[part].tensors
    return tensors[next(name for name in (f"{module}.weight", f"{module.removeprefix('text_model.')}.weight") if name in tensors)]


def halves(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    down = rng.normal(size=(RANK, *shape[1:])).astype(np.float32)
    up = rng.normal(size=(shape[0], RANK, *([1] * (len(shape) - 2)))).astype(np.float32) * 0.1
    return down, up


def product(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """B A written out: a sum over the rank."""
    return sum(np.multiply.outer(up.reshape(len(up), RANK)[:, r], down[r]) for r in range(RANK))  # type: ignore[return-value]


def merged(checkpoint: Checkpoint, loras: list[Lora], folder: Path) -> tuple[Checkpoint, Any]:
    reports = merge(checkpoint, loras, folder)
    return open_checkpoint(folder), reports


@pytest.mark.parametrize(
    ("spelling", "modules"),
    [
        (KOHYA, {"unet": [LINEAR, OUT, CONV], "text_encoder": [TEXT]}),
        (PEFT, {"unet": [LINEAR, OUT, CONV], "text_encoder": [TEXT]}),
        (OLD, {"unet": [LINEAR, OUT], "text_encoder": [TEXT]}),
        (ADAPTER, {"unet": [LINEAR, OUT, CONV]}),
    ],
    ids=["kohya", "peft", "old diffusers", "peft base_layer"],
)
def test_every_spelling_changes_the_same_weights(opened: Checkpoint, tmp_path: Path, spelling: Any, modules: Any) -> None:
    tensors, expected = {}, {}
    for part, names in modules.items():
        for k, module in enumerate(names):
            stored = weight(opened, part, module)
            down, up = halves(stored.shape, k)
            tensors |= dict(zip(spelling[part](module), (down, up), strict=True))
            expected[part, stored.name] = read_float32(stored) + np.float32(0.5) * product(down, up)
    made, (report,) = merged(opened, [Lora(save(tmp_path / "a.safetensors", tensors), 0.5)], tmp_path / "merged")
    assert (report.applied, report.unmatched) == (len(expected), [])
    for part in ("unet", "text_encoder", "vae"):
        for name, stored in opened.parts[part].tensors.items():
            now = read_float32(made.parts[part].tensors[name])
            wanted = expected.get((part, name), read_float32(stored)).astype(np.float16 if stored.dtype == "F16" else np.float32)
            assert np.array_equal(now, wanted.astype(np.float32)) or np.abs(now - wanted).max() < 2e-3, name
            assert np.array_equal(now, read_float32(stored)) != ((part, name) in expected), name


def test_the_network_computes_what_its_base_and_the_adapter_compute(opened: Checkpoint, tmp_path: Path) -> None:
    """The adapter as a branch of the layer, which is what a LoRA is defined as, against the merged weights."""
    import torch

    from platemark.optimize.modules import load_part

    down, up = halves(weight(opened, "unet", LINEAR).shape, 5)
    names = KOHYA["unet"](LINEAR)
    alpha = np.array(1.5, np.float32)
    file = save(tmp_path / "a.safetensors", {names[0]: down, names[1]: up, f"lora_unet_{flat(LINEAR)}.alpha": alpha})
    made, _ = merged(opened, [Lora(file, 0.8)], tmp_path / "merged")
    rng = torch.Generator().manual_seed(0)
    inputs = (torch.randn(1, 4, 32, 32, generator=rng), torch.tensor([7.0]), torch.randn(1, 12, 32, generator=rng))
    plain: Any = load_part(opened.parts["unet"])
    layer = plain.get_submodule(LINEAR)
    a, b = torch.from_numpy(down), torch.from_numpy(up)
    layer.register_forward_hook(lambda module, args, out: out + 0.8 * 1.5 / RANK * (args[0] @ a.T @ b.T))
    after: Any = load_part(made.parts["unet"])
    with torch.no_grad():
        wanted, got = (net(inputs[0], inputs[1], inputs[2]).sample for net in (plain, after))
        base = load_part(opened.parts["unet"])(*inputs).sample
    assert (got - wanted).abs().max() < 2e-3 * wanted.abs().max()  # the merged weight is rounded to float16
    assert (got - base).abs().max() > 20 * (got - wanted).abs().max()


def test_alpha_comes_from_the_tensor_then_the_metadata_then_the_rank(opened: Checkpoint, tmp_path: Path) -> None:
    down, up = halves(weight(opened, "unet", LINEAR).shape, 1)
    tensors = dict(zip(PEFT["unet"](LINEAR), (down, up), strict=True))
    config = {"unet.lora_alpha": 6, "unet.r": RANK, "unet.alpha_pattern": {}}
    pattern = config | {"unet.alpha_pattern": {"attn1.to_q": 9}}
    for metadata, alpha in ((None, RANK), (config, 6), (pattern, 9), ({"lora_alpha": 12}, 12)):
        said = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
        (change,), _ = read_lora(save(tmp_path / "a.safetensors", tensors, said))
        assert change.alpha == alpha
        assert np.allclose(change.delta((down.shape[1], down.shape[1])), alpha / RANK * product(down, up), atol=1e-6)
    own = tensors | {f"unet.{LINEAR}.alpha": np.array([2.0], np.float32)}
    assert read_lora(save(tmp_path / "a.safetensors", own, {"lora_adapter_metadata": json.dumps(config)}))[0][0].alpha == 2


def test_a_middle_tensor_is_between_the_halves(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    down, up, mid = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 1, 1), (6, 2, 1, 1), (2, 2, 3, 3)))
    name = f"lora_unet_{flat(CONV)}"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid}
    (change,), _ = read_lora(save(tmp_path / "a.safetensors", tensors))
    wanted = np.zeros((6, 8, 3, 3))
    for r in range(2):
        for s in range(2):
            wanted += np.einsum("o,kl,i->oikl", up[:, r, 0, 0], mid[r, s], down[s, :, 0, 0])
    assert np.allclose(change.delta((6, 8, 3, 3)), wanted, atol=1e-5)


def test_two_add_up_and_none_is_the_checkpoint_again(opened: Checkpoint, tmp_path: Path) -> None:
    stored = weight(opened, "unet", LINEAR)
    before = stored.file.read_bytes()
    files = []
    for k in range(2):
        down, up = halves(stored.shape, 10 + k)
        files.append(save(tmp_path / f"{k}.safetensors", dict(zip(KOHYA["unet"](LINEAR), (down, up), strict=True))))
    both, _ = merged(opened, [Lora(files[0]), Lora(files[1], -0.5)], tmp_path / "both")
    swapped, _ = merged(opened, [Lora(files[1], -0.5), Lora(files[0])], tmp_path / "swapped")
    wanted = read_float32(stored) + product(*halves(stored.shape, 10)) - 0.5 * product(*halves(stored.shape, 11))
    got = read_float32(weight(both, "unet", LINEAR))
    assert np.abs(got - wanted).max() < 2e-3
    assert np.abs(got - read_float32(weight(swapped, "unet", LINEAR))).max() < 2e-3
    assert stored.file.read_bytes() == before


def test_what_has_no_place_is_named_and_nothing_at_all_is_refused(opened: Checkpoint, tmp_path: Path) -> None:
    down, up = halves((32, 32), 1)
    stranger = {"lora_unet_nowhere.lora_down.weight": down, "lora_unet_nowhere.lora_up.weight": up, "lora_unet_x.hada_w1_a": down}
    with pytest.raises(InputError, match="nowhere"):
        merge(opened, [Lora(save(tmp_path / "a.safetensors", stranger))], tmp_path / "none")
    stored = weight(opened, "unet", LINEAR)
    fitting = dict(zip(KOHYA["unet"](LINEAR), halves(stored.shape, 1), strict=True))
    _, (report,) = merged(opened, [Lora(save(tmp_path / "b.safetensors", stranger | fitting))], tmp_path / "some")
    assert report.applied == 1
    assert report.unmatched == ["lora_unet_x.hada_w1_a", "nowhere"]


def test_wrong_files_are_refused(opened: Checkpoint, tmp_path: Path) -> None:
    down, up = halves((32, 32), 1)
    names = KOHYA["unet"](LINEAR)
    cases: list[tuple[dict[str, np.ndarray], str]] = [
        ({names[0]: down}, "alone"),
        ({names[0]: down, names[1]: up[:, :2]}, "fit together"),
        ({names[0]: down[:, :20], names[1]: up}, "weight is"),
        ({names[0]: down, names[1]: up, names[0].replace("lora_down.weight", "alpha"): np.array(np.inf, np.float32)}, "alpha"),
        ({names[0]: down * 1e6, names[1]: up * 1e6}, "fit fp16"),
    ]
    for k, (tensors, said) in enumerate(cases):
        with pytest.raises(CheckpointError, match=said):
            merge(opened, [Lora(save(tmp_path / "bad.safetensors", tensors))], tmp_path / f"bad{k}")
    (tmp_path / "x.pt").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="safetensors"):
        merge(opened, [Lora(tmp_path / "x.pt")], tmp_path / "pt")
    with pytest.raises(InputError, match="cannot be read"):
        merge(opened, [Lora(tmp_path / "missing.safetensors")], tmp_path / "missing")


def test_the_option_names_a_file_and_a_scale(tmp_path: Path) -> None:
    assert Lora.parse("a.safetensors") == Lora(Path("a.safetensors"), 1.0)
    assert Lora.parse("a.safetensors:-0.7") == Lora(Path("a.safetensors"), -0.7)
    assert Lora.parse("C:a.safetensors") == Lora(Path("C:a.safetensors"), 1.0)
    (tmp_path / "b:2").touch()
    assert Lora.parse(str(tmp_path / "b:2")) == Lora(tmp_path / "b:2", 1.0)
    for bad in ("a:nan", "a:11", "a:0", "a:inf"):
        with pytest.raises(InputError, match="scale"):
            Lora.parse(bad)


def test_a_bundle_with_a_lora_says_so_and_one_without_is_what_it_was(checkpoint_folder: Path, opened: Checkpoint, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from platemark.cli.build import command

    stored = weight(opened, "unet", LINEAR)
    file = save(tmp_path / "style.safetensors", dict(zip(KOHYA["unet"](LINEAR), halves(stored.shape, 1), strict=True)))
    said = CliRunner().invoke(
        command, [str(checkpoint_folder), "-o", str(tmp_path / "bundle"), "--lora", f"{file}:0.3"], standalone_mode=False
    )
    assert said.exit_code == 0, said.output
    assert "style.safetensors: 1 weights changed, scale 0.3" in said.output
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    (lora,) = manifest["source"]["loras"]
    assert (lora["applied"], lora["scale"]) == (1, 0.3)
    assert manifest["source"]["checkpoint"] == checkpoint_folder.name
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir() if path.name.startswith(".")) == []
    assert manifest["end_to_end"]["psnr"] >= manifest["end_to_end"]["bound_psnr"]
    refused = CliRunner().invoke(
        command, [str(checkpoint_folder), "-o", str(checkpoint_folder), "--lora", f"{file}"], standalone_mode=False
    )
    assert isinstance(refused.exception, InputError)
    assert "in place" in str(refused.exception)
