"""The policy file: what is refused, and with which words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from platemark.errors import PolicyError
from platemark.safety.policy import MAX_BYTES, load_policy, parse_policy, presets

GOOD = """version = 1
id = "studio"
fail = "closed"
prompt_checks = true
image_checks = true
[provenance]
require_watermark = true
[regenerate]
max = 2
[categories.weapon.prompt]
enabled = true
action = "block"
terms = ["dagger"]
[categories.weapon.image]
enabled = true
action = "blur"
threshold = 0.5
concepts = ["dagger"]
"""


def test_good_file_and_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "studio.toml"
    file.write_text(GOOD)
    policy = load_policy(file)
    assert policy.id == "studio"
    assert policy.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert policy.image_rules["weapon"].concepts == ("dagger",)
    assert load_policy(str(file)) == policy


BAD = [
    ("version = 1", "version = 1\ncolour = 3", "unknown key 'colour'"),
    ('terms = ["dagger"]', 'terms = ["dagger"]\nterm = ["x"]', "unknown key 'categories.weapon.prompt.term'"),
    ("max = 2", "max = 2\nmin = 1", "unknown key 'regenerate.min'"),
    ("version = 1", "version = 1\nsha256 = 'aa'", "unknown key 'sha256'"),
    ("version = 1", "version = 2", "version"),
    ("version = 1", "version = true", "version"),
    ('fail = "closed"', 'fail = "open"', "fail"),
    ('fail = "closed"\n', "", "fail"),
    ("prompt_checks = true", "prompt_checks = 1", "prompt_checks"),
    ("prompt_checks = true", 'prompt_checks = "yes"', "prompt_checks"),
    ("threshold = 0.5", "threshold = nan", "categories.weapon.image.threshold"),
    ("threshold = 0.5", "threshold = inf", "categories.weapon.image.threshold"),
    ("threshold = 0.5", "threshold = 0.0", "categories.weapon.image.threshold"),
    ("threshold = 0.5", "threshold = 1.01", "categories.weapon.image.threshold"),
    ("threshold = 0.5", "threshold = -0.5", "categories.weapon.image.threshold"),
    ("threshold = 0.5", 'threshold = "0.5"', "categories.weapon.image.threshold"),
    ("threshold = 0.5", "threshold = true", "categories.weapon.image.threshold"),
    ('concepts = ["dagger"]', "concepts = []", "categories.weapon.image"),
    ('concepts = ["dagger"]', 'concepts = ["  "]', "categories.weapon.image"),
    ('concepts = ["dagger"]', "concepts = [3]", "categories.weapon.image.concepts"),
    ('terms = ["dagger"]', "terms = []", "no built-in lexicon for 'weapon'"),
    ('terms = ["dagger"]', 'terms = ["?!"]', "no letter or digit"),
    ('action = "block"', 'action = "explode"', "categories.weapon.prompt.action"),
    ('action = "block"', 'action = "blur"', "a prompt cannot be answered with 'blur'"),
    ("max = 2", "max = -1", "regenerate.max"),
    ("max = 2", "max = 2.5", "regenerate.max"),
    ('id = "studio"', 'id = "../studio"', "id"),
    ("[categories.weapon.image]\nenabled = true", "[categories.weapon.image]\nenabled = false", "image_checks is on"),
    ("[categories.weapon.prompt]\nenabled = true", "[categories.weapon.prompt]\nenabled = false", "prompt_checks is on"),
    (GOOD[GOOD.index("[categories") :], "[categories]\n", "categories"),
    (GOOD[GOOD.index("[categories") :], "[categories.weapon]\n", "the category is empty"),
    ("categories.weapon.prompt", 'categories."Big Weapon".prompt', "categories"),
    ("version = 1", "version = ", "not valid TOML"),
    ("version = 1", "version = 1\nversion = 1", "not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), BAD)
def test_bad_file_names_the_file_and_the_key(old: str, new: str, complaint: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(PolicyError) as caught:
        parse_policy(GOOD.replace(old, new, 1).encode(), "studio.toml")
    assert "studio.toml" in caught.value.message
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"version = 1" + b"\x00", b"#" * (MAX_BYTES + 1), b"a = " + b"[" * 50_000], ids=lambda d: str(d[:4])
)
def test_bytes_that_are_no_policy(data: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_policy(data, "x.toml")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for source in (tmp_path / "none.toml", tmp_path, "no-such-preset", "a\0b"):
        with pytest.raises(PolicyError, match=r"standard|strict"):
            load_policy(source)


def test_presets_load_and_standard_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert presets() == ("research", "standard", "strict")
    assert [load_policy(name).id for name in presets()] == list(presets())
    monkeypatch.chdir(tmp_path)
    Path("standard").write_text("not a policy")
    assert load_policy(None) == load_policy("standard")
    with pytest.raises(PolicyError):
        load_policy(Path("standard"))


def test_strict_is_nowhere_laxer_than_standard() -> None:
    strict, standard = load_policy("strict"), load_policy("standard")
    for name, category in standard.categories.items():
        assert name in strict.categories
        if category.prompt:
            mine = strict.prompt_rules[name]
            assert mine.action.rank >= category.prompt.action.rank
            assert set(mine.terms) >= set(category.prompt.terms)
        if category.image:
            other = strict.image_rules[name]
            assert other.action.rank >= category.image.action.rank
            assert other.threshold <= category.image.threshold
            assert set(other.concepts) >= set(category.image.concepts)


def test_no_preset_lets_sexual_content_about_minors_pass() -> None:
    assert all(load_policy(name).prompt_rules["minors"].action == "block" for name in presets())
