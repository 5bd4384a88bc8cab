"""What an attacker may try: other keys, a copied mark, the key file. Run on what the press really delivers."""

from __future__ import annotations

import io
import logging
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from platemark.errors import PlatemarkError
from platemark.imaging import decode, encode
from platemark.press import Press, load
from platemark.provenance.home import home as state_folder
from platemark.provenance.keyring import held_keys
from platemark.provenance.verify import verify
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.key import WatermarkKey

Pixels = np.ndarray


class Scene:
    """Two pictures of one press, B from before any mark, and A's original, which an attacker may have too."""

    def __init__(self, press: Press) -> None:
        from platemark.runtime.request import GenerationRequest

        self.home = state_folder()
        (result,) = press.generate("a red apple", seed=1)
        assert result.data is not None
        assert result.provenance is not None
        self.record, self.data = result.provenance, result.data
        self.marked = decode(result.data).array
        manifest = press.pipeline.bundle.manifest
        self.original, self.other = (
            np.asarray(press.pipeline.generate(GenerationRequest.make(manifest, prompt=prompt, seed=seed)).images[0])
            for prompt, seed in (("a red apple", 1), ("sailboat", 5))
        )
        self.keys = held_keys(self.home)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLATEMARK_HOME", str(tmp_path_factory.mktemp("threats")))
        return Scene(load())


def pasted(mark: Pixels, onto: Pixels, gain: float) -> Pixels:
    return np.clip(np.rint(onto + gain * mark), 0, 255).astype(np.uint8)


def test_the_scene_is_what_it_should_be(scene: Scene) -> None:
    change = scene.marked.astype(int) - scene.original
    assert 0 < np.abs(change).max() < 40
    assert verify(scene.data, home=scene.home).verdict == "intact-untrusted"
    assert verify(encode(scene.other), home=scene.home).verdict == "none"


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_a_copied_mark_is_a_conflict(scene: Scene, gain: float) -> None:
    """The attacker has A before and after marking, and adds the difference to B."""
    report = verify(encode(pasted(scene.marked.astype(np.float32) - scene.original, scene.other, gain)), home=scene.home)
    assert report.layers["watermark"]["state"] == "detected", "else the attack failed and this test says nothing"
    assert report.content_id == scene.record.content_id
    assert report.verdict == "conflict"
    assert report.layers["registry"]["distance"] > 31
    assert report.layers["registry"]["state"] == "found"
    assert report.axes["recovery"] == "by-watermark"
    assert any("another picture" in sentence for sentence in report.summary), report.summary


def forged(scene: Scene) -> Image.Image:
    return Image.fromarray(pasted(scene.marked.astype(np.float32) - scene.original, scene.other, 2.0))


MOVES = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 270": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "mirrored and turned": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "half size": lambda image: image.resize((300, 300), Image.Resampling.LANCZOS),
    "twice the size": lambda image: image.resize((900, 900), Image.Resampling.BICUBIC),
    "stretched": lambda image: image.resize((560, 512), Image.Resampling.BICUBIC),
    "turned a little": lambda image: image.rotate(2.5, Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_copied_mark_is_a_conflict_however_its_frame_is_laid(scene: Scene, move: str) -> None:
    """The forger mirrors, turns or resizes to escape the comparison; the real picture under the same change is no conflict."""
    report = verify(encode(np.asarray(MOVES[move](forged(scene)))), home=scene.home)
    assert report.layers["watermark"]["state"] == "detected", "else the attack failed and this test says nothing"
    assert report.verdict == "conflict"
    real = verify(encode(np.asarray(MOVES[move](Image.fromarray(scene.marked)))), home=scene.home)
    assert real.verdict == "recovered-by-watermark"
    assert real.layers["registry"]["compared"]
    assert real.layers["registry"]["distance"] <= 40


@pytest.mark.parametrize("whose", ["forged", "real"])
def test_a_crop_is_recovered_and_said_to_be_compared_with_nothing(scene: Scene, whose: str) -> None:
    image = forged(scene) if whose == "forged" else Image.fromarray(scene.marked)
    report = verify(encode(np.asarray(image.crop((40, 40, 472, 472)))), home=scene.home)
    assert report.verdict == "recovered-by-watermark"
    registry = report.layers["registry"]
    assert registry["compared"] is False
    assert "distance" not in registry
    assert any("could not be compared with the registered picture" in sentence for sentence in report.summary)


def test_a_free_turn_cannot_be_compared(scene: Scene) -> None:
    turned = Image.fromarray(scene.marked).rotate(30, Image.Resampling.BICUBIC)
    report = verify(encode(np.asarray(turned)), home=scene.home)
    assert report.verdict == "recovered-by-watermark"
    assert report.layers["registry"]["compared"] is False
    assert any("turned by 30" in difference for difference in report.layers["registry"]["differences"])


def test_a_mark_estimated_by_denoising_never_makes_a_picture_traced(scene: Scene) -> None:
    """The attacker has only the marked A: what a denoiser takes away is the estimate, pasted at several gains."""
    soft = np.asarray(Image.fromarray(scene.marked).filter(ImageFilter.MedianFilter(3)), dtype=np.float32)
    verdicts = {verify(encode(pasted(scene.marked - soft, scene.other, gain)), home=scene.home).verdict for gain in (1.0, 2.0, 4.0)}
    assert verdicts <= {"conflict", "none"}, verdicts


def test_the_real_picture_after_jpeg_is_no_conflict(scene: Scene) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene.marked).save(buffer, "JPEG", quality=75)
    report = verify(buffer.getvalue(), home=scene.home)
    assert report.verdict == "recovered-by-watermark"
    assert report.content_id == scene.record.content_id


def test_other_keys_read_nothing(scene: Scene) -> None:
    assert detect(scene.marked, scene.keys[0].watermark).payload is not None
    others = [WatermarkKey.from_secret(bytes([number]) * 32) for number in range(40)]
    found = [detect(scene.marked, key) for key in others]
    assert {one.verdict for one in found} <= {"not-detected", "inconclusive"}
    assert sum(one.verdict == "inconclusive" for one in found) <= 1
    assert {one.payload for one in found} == {None}
    assert np.quantile([one.p_value for one in found], 0.25) > 1e-3, "a wrong key's p-values are those of chance"


def test_a_verifier_without_the_key_says_so(scene: Scene, tmp_path: Path) -> None:
    assert verify(encode(scene.marked), home=tmp_path / "empty").layers["watermark"]["state"] == "no-key"


def test_key_files_are_for_their_owner_alone(scene: Scene) -> None:
    files = [path for path in (scene.home / "keys").rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((scene.home / "keys").stat().st_mode) == 0o700


def test_secrets_are_in_no_log_text_or_error(scene: Scene, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [text for key in scene.keys for text in (key.secret.hex(), repr(key.secret))]
    key = scene.keys[0].watermark
    said = [repr(scene.keys), repr(key), str(key), repr(detect(scene.marked, key)), repr(verify(scene.data, home=scene.home))]
    ring = scene.home / "keys" / "watermark.json"
    damaged = tmp_path / "keys" / "watermark.json"
    damaged.parent.mkdir(mode=0o700)
    damaged.write_bytes(ring.read_bytes().replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(PlatemarkError) as caught:
        held_keys(tmp_path)
    said += [str(caught.value), repr(caught.value.__cause__), caplog.text]
    said += [path.read_text(errors="replace") for path in scene.home.rglob("*") if path.is_file() and path.parent.name != "keys"]
    assert not [secret for secret in secrets for text in said if secret in text]
