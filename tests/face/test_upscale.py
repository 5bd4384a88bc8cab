"""Enlarging through the press: looked at, checked, marked, recorded; what was done is in the record and in the credentials."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from click.testing import CliRunner

from platemark.cli import main
from platemark.errors import InputError, PolicyBlocked
from platemark.imaging import decode
from platemark.press import Press, load
from platemark.rendering import Watch
from platemark.runtime.upscale import lanczos


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return load(home=tmp_path_factory.mktemp("press"))


@pytest.fixture(scope="module")
def apple(press: Press) -> bytes:
    (result,) = press.generate("a red apple", seed=1, num_inference_steps=4, height=256, width=256)
    assert result.data is not None
    return result.data


def manifest(data: bytes) -> dict[str, Any]:
    store = json.loads(c2pa.Reader("image/png", io.BytesIO(data)).json())
    return store["manifests"][store["active_manifest"]]  # type: ignore[no-any-return]


def test_a_picture_is_enlarged_and_stamped(press: Press, apple: bytes) -> None:
    stages: list[str] = []
    result = press.upscale(apple, 2, watch=Watch(on_stage=stages.append))
    assert result.data is not None
    assert result.provenance is not None
    facts = result.provenance.facts
    assert (facts.operation, facts.settings, facts.resampled_from, facts.prompt) == ("upscale", {"upscale": "2 lanczos"}, (256, 256), None)
    assert (facts.model_name, facts.resampled_by) == ("lanczos", "lanczos")
    wanted = lanczos(decode(apple).array, 512, 512)
    found = decode(result.data).array
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 3  # the mark alone
    made = manifest(result.data)
    (ingredient,) = made["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert ingredient["active_manifest"]
    actions = {action["action"]: action for action in made["assertions"][0]["data"]["actions"]}
    assert actions["c2pa.edited"]["digitalSourceType"].endswith("algorithmicallyEnhanced")
    assert actions["c2pa.resized"]["parameters"]["com.platemark.filter"] == "lanczos"
    assert stages[:3] == ["check_input_image", "render", "check_image"]
    assert stages[-1] == "release"


def test_generate_takes_a_factor(press: Press) -> None:
    (result,) = press.generate("a red apple", seed=1, num_inference_steps=2, height=128, width=128, upscale=3)
    assert result.data is not None
    assert result.provenance is not None
    assert decode(result.data).array.shape == (384, 384, 3)
    facts = result.provenance.facts
    assert (facts.operation, facts.settings["upscale"], facts.resampled_from) == ("text2img", "3 lanczos", (128, 128))


def test_a_real_face_needs_consent_here_too(press: Press) -> None:
    from skimage import data

    portrait = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    with pytest.raises(PolicyBlocked) as caught:
        press.upscale(portrait)
    assert caught.value.decision.reason_code == "consent_missing"
    result = press.upscale(portrait, consent="form 12")
    assert result.decision is not None
    assert result.provenance is None or result.provenance.facts.consent_ref == "form 12"


def test_what_cannot_be_enlarged_is_refused(press: Press) -> None:
    with pytest.raises(InputError, match="upscale"):
        press.upscale(np.full((128, 128, 3), 9, np.uint8), 1)
    with pytest.raises(InputError, match="larger than"):
        press.upscale(np.random.default_rng(0).integers(0, 255, (4096, 1500, 3), dtype=np.uint8), 8)
    with pytest.raises(InputError, match="format"):
        press.upscale(np.full((128, 128, 3), 9, np.uint8), file_format="bmp")


def test_the_command_line_enlarges(state_home: Path, apple: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(apple)
    done = CliRunner().invoke(main, ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.jpg"), "--factor", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["status"] == "released"
    assert decode(tmp_path / "out.jpg").array.shape == (512, 512, 3)
    done = CliRunner().invoke(main, ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert "no file name" in done.output
    done = CliRunner().invoke(
        main, ["generate", "a cat", "--steps", "2", "--seed", "1", "--size", "128x128", "--upscale", "2", "-o", str(tmp_path / "g.png")]
    )
    assert done.exit_code == 0, done.output
    assert decode(tmp_path / "g.png").array.shape == (256, 256, 3)
