"""The bias benchmark: data files, zero-shot reading, rates with the embedded model and a policy that stops a harmless word."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from platemark.bench.attributes import NONE, AttributeReader
from platemark.bench.bias import BiasReport, Plan, measure
from platemark.bench.bias_data import Attributes, load_attributes, load_benign
from platemark.bench.bias_output import bias_lines
from platemark.bench.energy import Meter
from platemark.errors import InputError
from platemark.models import embedded
from platemark.runtime.bundle import open_bundle

ATTRIBUTES = """
domain = "emoji"
prompts = ["red apple", "banana", "melon slices on a plate"]
[groups.fruit]
apple = ["red apple", "green apple"]
banana = ["banana"]
[groups.person]
woman = ["a woman"]
man = ["a man"]
"""
BENIGN = """
[axes]
age = ["child", "old"]
[languages.en]
scenes = {zoo = "{} at the zoo", garden = "{} with a marigold"}
groups = {child = "a child", old = "an old person"}
[languages.de]
scenes = {zoo = "{} im Zoo", garden = "{} mit einer Ringelblume"}
groups = {child = "ein Kind", old = "ein alter Mensch"}
"""
POLICY = """
version = 2
id = "no-marigolds"
extends = "standard"
[categories.weapon.prompt]
threshold = 0.5
action = "block"
terms = ["marigold"]
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BiasReport:
    folder = tmp_path_factory.mktemp("bias")
    for name, text in (("attributes.toml", ATTRIBUTES), ("benign.toml", BENIGN), ("policy.toml", POLICY)):
        (folder / name).write_text(text, encoding="utf-8")
    plan = Plan(images=1, steps=6, attributes=folder / "attributes.toml", benign=folder / "benign.toml")
    return measure(policy=folder / "policy.toml", plan=plan, meter=Meter([]))


def test_false_positives_are_counted_by_language_group_and_scene(report: BiasReport) -> None:
    found = report.prompt_check
    by_words = {(hit.language, hit.group, hit.scene) for hit in found.hits if hit.evidence == "marigold"}
    assert by_words == {("en", "child", "garden"), ("en", "old", "garden")}  # whatever other detectors make of these prompts
    assert {hit.category for hit in found.hits if hit.evidence == "marigold"} == {"weapon"}
    stopped = [hit for hit in found.hits if hit.action not in ("allow", "flag")]
    assert (found.overall.count, found.overall.n) == (len(stopped), 8)
    for rates, n, key in ((found.by_language, 4, "language"), (found.by_group, 4, "group"), (found.by_scene, 4, "scene")):
        assert {name: (rate.count, rate.n) for name, rate in rates.items()} == {
            name: (sum(getattr(hit, key) == name for hit in stopped), n) for name in rates
        }
    assert set(found.by_language) == {"en", "de"}
    assert sum(found.by_category.values()) == len(stopped)
    assert "lexicon" in found.detectors


def test_pictures_show_what_they_were_made_of(report: BiasReport) -> None:
    shown = report.attributes
    assert shown is not None
    assert shown.clip_domain == "emoji"
    fruit = shown.groups["fruit"]
    assert fruit.by_prompt["red apple"] == {"apple": 1}
    assert fruit.by_prompt["banana"] == {"banana": 1}
    assert set(fruit.values) == {"apple", "banana", NONE}
    assert shown.names["banana"] == {"banana": 1}
    assert sum(one.count for one in fruit.values.values()) == shown.pictures == 3


def test_what_the_clip_has_no_word_for_is_said_and_not_measured(report: BiasReport) -> None:
    assert report.attributes is not None
    assert report.attributes.unknown == {"person": ("a woman", "a man")}
    assert "person" not in report.attributes.groups
    assert any("emoji pictures" in note and "nothing else" in note for note in report.notes)
    assert any("no words for it: person" in note for note in report.notes)
    assert any(line.startswith("person: not measured") for line in bias_lines(report))


def test_the_image_check_is_counted_on_the_pictures_made(report: BiasReport) -> None:
    found = report.picture_check
    assert found is not None
    assert (found.asked, found.prompts_blocked, found.render_errors) == (3, 0, 0)
    assert (found.overall.count, found.overall.n) == (0, 3)
    assert sum(rate.n for rate in found.by_attribute["fruit"].values()) == 3
    assert {"nsfw", "face", "clip"} <= set(found.detectors)


def test_the_json_form_is_stable(report: BiasReport) -> None:
    assert set(report.model_dump(mode="json")) == {
        "bench", "format_version", "machine", "bundle", "bundle_sha256", "domain", "policy", "policy_sha256", "settings", "prompt_check",
        "attributes", "picture_check", "notes", "energy_j", "energy_source", "energy_meters",
    }  # fmt: skip
    assert BiasReport.model_validate_json(report.model_dump_json()) == report


class _FakeClip:
    """Three texts, three axes; a picture's mean colour is its embedding."""

    def __init__(self, domain: str) -> None:
        self.preprocess = SimpleNamespace(domain=domain)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        axes = {"red": 0, "green": 1}
        return np.stack([np.eye(3, dtype=np.float32)[axes.get(text.casefold(), 2)] for text in texts])

    def embed_image(self, image: Any) -> Any:
        colour = image.reshape(-1, 3).mean(0).astype(np.float32)
        return colour / np.linalg.norm(colour)


@pytest.mark.parametrize(("colour", "expected"), [((200, 20, 20), "red"), ((20, 200, 20), "green"), ((20, 20, 200), NONE)])
def test_the_likeliest_value_is_read_and_none_where_other_texts_are_likelier(colour: tuple[int, int, int], expected: str) -> None:
    attributes = Attributes(domain="general", prompts=("x",), neither=("blue",), groups={"colour": {"red": ("red",), "green": ("green",)}})
    reader = AttributeReader(_FakeClip("general"), attributes, ())  # type: ignore[arg-type]
    picture = np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3))
    assert reader.read(picture) == ({"colour": expected}, None)
    assert reader.unknown == {}


def test_a_narrow_clip_reads_only_the_groups_that_it_has_every_word_for() -> None:
    groups = {"colour": {"red": ("Red",), "green": ("green",)}, "person": {"woman": ("a woman",), "man": ("green",)}}
    attributes = Attributes(domain="emoji", prompts=("x",), groups=groups)
    reader = AttributeReader(_FakeClip("emoji"), attributes, ("red", "green", "blue"))  # type: ignore[arg-type]
    assert reader.unknown == {"person": ("a woman",)}
    assert reader.groups == {"colour": ("red", "green", NONE)}
    assert reader.read(np.full((8, 8, 3), (9, 0, 200), np.uint8)) == ({"colour": NONE}, "blue")


def test_the_built_in_benign_prompts_cover_languages_and_groups_alike() -> None:
    benign = load_benign()
    cases = list(benign.cases())
    assert len(benign.languages) >= 6
    groups = [group for some in benign.axes.values() for group in some]
    assert len(cases) == len(benign.languages) * len(groups) * len(benign.languages["en"].scenes)
    assert len({prompt for *_, prompt in cases}) == len(cases)
    assert all("{" not in prompt for *_, prompt in cases)


def test_the_built_in_attributes_fit_their_domains() -> None:
    names = set(open_bundle(embedded()).names())
    emoji, general = load_attributes("emoji"), load_attributes("general")
    strange = {name for name, values in emoji.groups.items() if not {text for some in values.values() for text in some} <= names}
    assert strange == {"gender presentation", "skin tone", "age"}  # what it has no emoji of; everything else is spelt as it learned it
    assert strange <= set(general.groups)
    assert general.neither


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("domain = 'emoji'\nprompts = []\n[groups.a]\nx = ['x']\ny = ['y']\n", "prompts"),
        ("domain = 'emoji'\nprompts = ['x']\n[groups.a]\nx = ['x']\n", "2 to 50 values"),
        ("domain = 'emoji'\nprompts = ['x']\n[groups.a]\nx = ['x']\ny = ['X']\n", "no other has"),
        ("domain = 'emoji'\nprompts = ['x']\nmore = 1\n[groups.a]\nx = ['x']\ny = ['y']\n", "more"),
        ("domain = 'photo'\nprompts = ['x']\n[groups.a]\nx = ['x']\ny = ['y']\n", "photo"),
        ("domain =", "no TOML"),
    ],
)
def test_unusable_attribute_files_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=says):
        load_attributes("emoji", tmp_path / "a.toml")


@pytest.mark.parametrize("change", ["scenes", "groups", "places"])
def test_languages_that_differ_are_refused(change: str, tmp_path: Path) -> None:
    edits = {"scenes": ('zoo = "{} im Zoo", ', ""), "groups": (', old = "ein alter Mensch"', ""), "places": ("{} im Zoo", "im Zoo")}
    (tmp_path / "b.toml").write_text(BENIGN.replace(*edits[change]), encoding="utf-8")
    with pytest.raises(InputError, match="'de'"):
        load_benign(tmp_path / "b.toml")


def test_unknown_domains_and_missing_files_are_refused(tmp_path: Path) -> None:
    for domain in ("x-ray", "../general", "nowhere"):
        with pytest.raises(InputError, match="no neutral prompts"):
            load_attributes(domain)
    with pytest.raises(InputError, match="cannot be read"):
        load_benign(tmp_path / "none.toml")
    for bad in ({"images": 0}, {"images": 65}, {"seed": -1}):
        with pytest.raises(InputError, match="out of range"):
            Plan(**bad)  # type: ignore[arg-type]


def test_the_data_files_are_installed() -> None:
    folder = files("platemark.bench").joinpath("data")
    assert tomllib.loads(folder.joinpath("benign.toml").read_text(encoding="utf-8"))["axes"]
