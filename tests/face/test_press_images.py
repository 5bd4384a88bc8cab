"""Pictures that a request brings: looked at first, kept where they are not to be changed, and named as what the result was made from."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from platemark.cli import main
from platemark.errors import InputError, PolicyBlocked
from platemark.imaging import decode, encode
from platemark.press import Press, load
from platemark.provenance.record import Facts
from platemark.provenance.watermark.inversion import Inverter, latent_shape
from platemark.provenance.watermark.latent import read_noise


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return load(home=tmp_path_factory.mktemp("press"))


@pytest.fixture(scope="module")
def apple(press: Press) -> bytes:
    (result,) = press.generate("a red apple", seed=1, num_inference_steps=4, height=256, width=256)
    assert result.data is not None
    return result.data


def facts(result: Any) -> Facts:
    return result.provenance.facts  # type: ignore[no-any-return]


def manifest(data: bytes) -> dict[str, Any]:
    store = json.loads(c2pa.Reader("image/png", io.BytesIO(data)).json())
    return store["manifests"][store["active_manifest"]]  # type: ignore[no-any-return]


def test_image_to_image_opens_its_parent_with_all_that_it_carries(press: Press, apple: bytes) -> None:
    (result,) = press.generate("a green apple", image=apple, strength=0.4, seed=2, num_inference_steps=4)
    assert result.data is not None
    assert facts(result).operation == "img2img"
    assert facts(result).settings["strength"] == "0.4"
    assert result.provenance is not None
    assert result.provenance.parent_sha256 == hashlib.sha256(apple).hexdigest()
    made = manifest(result.data)
    (ingredient,) = made["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert ingredient["active_manifest"]
    actions = made["assertions"][0]["data"]["actions"]
    assert actions[0]["action"] == "c2pa.opened"
    assert "digitalSourceType" not in actions[0]
    assert decode(result.data).array.shape == (256, 256, 3)


def test_inpainting_is_composite_and_an_array_is_a_parent_too(press: Press, apple: bytes) -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[64:128, 64:128] = 255
    (result,) = press.generate("a green apple", image=decode(apple).array, mask_image=mask, seed=2, num_inference_steps=4)
    assert result.data is not None
    assert facts(result).operation == "inpaint"
    assert result.provenance is not None
    assert result.provenance.digital_source_type.endswith("compositeWithTrainedAlgorithmicMedia")
    assert len(manifest(result.data)["ingredients"]) == 1
    change = np.abs(decode(result.data).array.astype(int) - decode(apple).array).mean(axis=2)
    assert change[mask == 0].mean() < 2.5  # the mark alone
    assert change[mask > 0].mean() > 2 * change[mask == 0].mean()


def test_a_real_face_needs_consent_which_goes_into_the_record(press: Press) -> None:
    from skimage import data

    portrait = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    with pytest.raises(PolicyBlocked) as caught:
        press.generate("a cat", image=portrait, seed=1, num_inference_steps=2)
    assert caught.value.decision.stage == "input_image"
    assert caught.value.decision.reason_code == "consent_missing"
    assert "--consent" in caught.value.remedy
    (result,) = press.generate("a cat", image=portrait, consent="form 12", seed=1, num_inference_steps=2, strength=0.9)
    assert result.decision is not None
    assert facts(result).consent_ref == "form 12" if result.provenance else result.decision.consent == "form 12"


def test_the_wish_to_undress_a_picture_is_blocked_before_it_is_looked_at(press: Press, apple: bytes) -> None:
    with pytest.raises(PolicyBlocked) as caught:
        press.generate("undress her", image=apple, seed=1, num_inference_steps=2)
    assert caught.value.decision.stage == "prompt"


def test_the_requests_hash_knows_the_picture(press: Press, apple: bytes) -> None:
    other = encode(np.ascontiguousarray(decode(apple).array[:, ::-1]))
    one, same, different = (
        facts(press.generate("a cat", image=image, seed=1, num_inference_steps=2)[0]).request_hmac for image in (apple, apple, other)
    )
    assert one == same != different


def test_marked_noise_is_read_from_the_picture_where_the_policy_wants_it(tmp_path: Path) -> None:
    policy = tmp_path / "marked.toml"
    policy.write_text('extends = "standard"\nversion = 2\nid = "marked"\n\n[provenance]\nlatent_mark = true\n')
    press = load(policy=policy, home=tmp_path / "home")
    (result,) = press.generate("a red apple", seed=3)
    assert result.data is not None
    assert facts(result).latent_mark
    key = press.stamp.identity.watermark_key.watermark
    assert latent_shape(press.pipeline.bundle, 512, 512) == (4, 16, 16)
    found = read_noise(Inverter(press.pipeline).guesses(decode(result.data).array), [key])
    assert found.verdict == "detected"
    plain = load(home=tmp_path / "plain").generate("a red apple", seed=3)[0]
    assert not facts(plain).latent_mark
    assert not np.array_equal(decode(plain.data or b"").array, decode(result.data).array)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["generate", "a cat", "--steps", "2", "--seed", "1", *map(str, arguments)])


def test_the_command_line_takes_pictures(state_home: Path, apple: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(apple)
    mask = np.zeros((256, 256), np.uint8)
    mask[:, 128:] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    image = ("--image", tmp_path / "in.png")
    for k, options in enumerate([("--strength", 0.5), ("--mask", tmp_path / "mask.png", "--invert-mask"), ("--outpaint", "0,0,64,0")]):
        done = run(*image, *options, "-o", tmp_path / f"{k}.png", "--json")
        assert done.exit_code == 0, done.output
        assert decode(tmp_path / f"{k}.png").array.shape == (256, 320 if k == 2 else 256, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mask", "m.png"), "--mask without --image"),
        (("--control-scale", "0.5"), "--control-scale without --control"),
        (("--outpaint", "9"), "--outpaint without --image"),
        (("--invert-mask",), "--invert-mask without --mask"),
        (("--strength", 0.5), "strength without an image"),
        (("--image", "missing.png"), "cannot read"),
        (("--variation-strength", 0.5), "second seed"),
    ],
)
def test_what_goes_with_nothing_is_refused(state_home: Path, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    done = run(*options, "-o", tmp_path / "o.png")
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "o.png").exists()


def test_a_picture_that_is_none_is_refused(press: Press) -> None:
    with pytest.raises(InputError):
        press.generate("a cat", image=b"not a picture")
