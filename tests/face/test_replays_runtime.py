"""Reports that users of other image tools filed about their runtimes, each tried through the press. The name of a test is the report's.

Others stand where the code is: schedulers shared by threads and late starts in tests/runtime/test_schedulers and test_start, samplers
against the checkpoint's config in test_schedulers_reference, memory at 2048 px in test_memory, cancel and deadlines in test_press_control.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from platemark import load
from platemark.models import embedded
from platemark.press import Press

FAST: dict[str, Any] = {"num_inference_steps": 2}
HEAVY = ["torch", "torchvision", "diffusers", "transformers", "open_clip", "fastapi", "ray", "openvino", "pandas", "scipy"]


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Press:
    """The embedded model as one that renders any size, as a Stable Diffusion checkpoint does."""
    root = tmp_path_factory.mktemp("any") / "bundle"
    shutil.copytree(embedded(), root)
    manifest = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(manifest | {"output_size": manifest["native_size"]}))
    return load(root, home=tmp_path_factory.mktemp("home"))


def pixels(result: Any) -> np.ndarray:
    assert result.status == "released"
    return np.asarray(result.image)


def test_generate_loads_no_training_or_server_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom platemark.cli import main\n"
        f"try:\n    main(['generate', 'a red apple', '--seed', '1', '--steps', '2', '-o', {str(tmp_path / 'a.png')!r}])\n"
        f"except SystemExit as end:\n    print(end.code, sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert (tmp_path / "a.png").is_file()


def test_one_step_of_strength_0_8_leaves_no_timesteps(any_size: Press) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    (result,) = any_size.generate("a cat", seed=1, image=picture, strength=0.8, num_inference_steps=1)
    assert np.ptp(pixels(result)) > 20
    for scheduler in ("heun", "pndm", "dpm++sde"):
        assert any_size.generate("a cat", seed=1, image=picture, strength=0.01, num_inference_steps=1, scheduler=scheduler)[0].data


def test_width_520(any_size: Press) -> None:
    (result,) = any_size.generate("a red apple", seed=1, width=520, height=72, **FAST)
    assert pixels(result).shape == (72, 520, 3)
    assert result.provenance is not None
    assert result.provenance.facts.resampled_from is None


def test_154_token_prompts(any_size: Press) -> None:
    long = "a red apple on a table " * 25 + "with a blue sky"
    (whole,), (cut,) = any_size.generate(long, seed=1, **FAST), any_size.generate(long[: len(long) // 2], seed=1, **FAST)
    assert whole.notes == ()  # nothing was cut in silence
    assert not np.array_equal(pixels(whole), pixels(cut))


def test_batch_seeds_are_not_reproducible_alone(any_size: Press) -> None:
    batch = any_size.generate("sun", n=3, seed=2**64 - 2, scheduler="euler-a", **FAST)
    assert [one.seed for one in batch] == [2**64 - 2, 2**64 - 1, 0]
    made = [any_size.pipeline.generate(any_size.admit("sun", n=1, seed=one.seed, scheduler="euler-a", **FAST)).arrays[0] for one in batch]
    together = any_size.pipeline.generate(any_size.admit("sun", n=3, seed=2**64 - 2, scheduler="euler-a", **FAST)).arrays
    assert float(np.square(together - np.stack(made)).mean()) < 1e-6


@pytest.mark.parametrize("seed", [2**32, 2**32 + 1, 2**63])
def test_seeds_beyond_32_and_63_bits(any_size: Press, seed: int) -> None:
    (result,) = any_size.generate("sun", seed=seed, **FAST)
    assert result.seed == seed
    assert result.as_dict()["seed"] == str(seed)  # JSON readers round numbers of this size
    again = any_size.pipeline.generate(any_size.admit("sun", seed=seed, **FAST)).images
    assert np.array_equal(again, any_size.pipeline.generate(any_size.admit("sun", seed=seed, **FAST)).images)


def sources() -> dict[str, Image.Image]:
    rows, columns = np.mgrid[:128, :96]
    rgb = np.stack([rows * 2 % 256, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    turned = Image.fromarray(np.rot90(rgb))  # EXIF 6 turns it back
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    return {
        "alpha": Image.fromarray(np.dstack([rgb, np.full((128, 96), 255, np.uint8)])),
        "palette": Image.fromarray(rgb).quantize(255),
        "16-bit": Image.fromarray(np.repeat(rows[:, :1] * 512, 96, axis=1).astype(np.uint16)),
        "exif": turned,
    }


@pytest.mark.parametrize("kind", ["alpha", "palette", "16-bit", "exif"])
def test_input_images_of_every_kind_keep_their_unmasked_area(any_size: Press, kind: str, tmp_path: Path) -> None:
    """A black mask but for a corner: what is not painted comes back as the picture shows it, upright and in RGB."""
    source = sources()[kind]
    path = tmp_path / "in.png"
    source.save(path, exif=source.info.get("exif", b""))
    mask = np.zeros((128, 96), np.uint8)
    mask[:32, :32] = 255
    request = any_size.admit("a cat", seed=1, image=opened(path), mask_image=mask, **FAST)
    assert (request.height, request.width) == (128, 96)
    (picture,) = any_size.pipeline.generate(request).images
    assert np.array_equal(picture[mask == 0], opened(path)[mask == 0])
    assert not np.array_equal(picture[mask > 0], opened(path)[mask > 0])
    (inverted,) = any_size.pipeline.generate(any_size.admit("a cat", seed=1, image=opened(path), mask_image=255 - mask, **FAST)).images
    assert np.array_equal(inverted[mask > 0], opened(path)[mask > 0])


def opened(path: Path) -> np.ndarray:
    from platemark.input_picture import open_picture

    return open_picture(path).pixels


def test_an_init_image_of_another_aspect_is_cut_and_not_stretched(any_size: Press) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = np.random.default_rng(0).integers(100, 256, (64, 64, 3))
    request = any_size.admit("a cat", seed=1, image=wide, height=64, width=64, strength=0.01, num_inference_steps=50)
    (picture,) = any_size.pipeline.generate(request).images
    assert picture.shape == (64, 64, 3)
    assert picture.mean() > 100  # the middle, with none of the black sides
