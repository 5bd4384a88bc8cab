"""Styles: what they put around a prompt, what they set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from platemark.errors import InputError
from platemark.runtime.bundle import open_bundle
from platemark.runtime.manifest import Manifest
from platemark.runtime.request import GenerationRequest
from platemark.runtime.style import Style, load_style, names


@pytest.fixture(scope="module")
def manifest(miniature: Path) -> Manifest:
    return open_bundle(miniature).manifest


def test_every_built_in_style_makes_a_request(manifest: Manifest) -> None:
    assert len(names()) >= 5
    for name in names():
        made = GenerationRequest.make(manifest, prompt="a cat", style=name)
        assert "a cat" in made.prompt
        assert made.prompt != "a cat"
        assert made.style == name
        assert made.settings()["style"] == name


def test_the_request_comes_before_the_style_and_the_style_before_the_bundle(manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "noir.toml"
    file.write_text('prefix = "film noir, "\nnegative_prompt = "color"\nguidance_scale = 9.5\nscheduler = "euler"\n')
    made = GenerationRequest.make(manifest, prompt="a cat", negative_prompt="dog", style=file)
    assert (made.prompt, made.negative_prompt, made.guidance_scale, made.scheduler) == ("film noir, a cat", "dog, color", 9.5, "euler")
    assert made.num_inference_steps == manifest.default_steps
    assert made.style == "noir"
    assert GenerationRequest.make(manifest, prompt="a cat", style=str(file), guidance_scale=2).guidance_scale == 2


def test_no_style_changes_nothing(manifest: Manifest) -> None:
    made = GenerationRequest.make(manifest, prompt="a cat")
    assert (made.prompt, made.style) == ("a cat", None)
    assert "style" not in made.settings()


def test_an_empty_prompt_is_empty_under_any_style(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="empty"):
        GenerationRequest.make(manifest, prompt=" ", style=names()[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prefx = 'x'", "prefx"),
        ("guidance_scale = 51.0", "guidance_scale"),
        ("prefix = 3", "prefix"),
        ("name = 'x' y", "TOML"),
        ("name = 'x'", "sets a name"),
        ("\xff", "TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said) as caught:
        load_style(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("style", ["nothing-like-it", "missing.toml", Path("styles")])
def test_an_unknown_style_is_refused(style: str | Path) -> None:
    with pytest.raises(InputError, match="style"):
        load_style(style)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text("# " + "x" * 70_000)
    with pytest.raises(InputError, match="too long"):
        load_style(tmp_path / "long.toml")


def test_words_are_joined_only_where_there_are_some() -> None:
    assert Style(name="x").negative(" ") == ""
    assert Style(name="x", negative_prompt="a").negative("") == "a"
