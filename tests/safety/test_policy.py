"""The policy file: what is refused, and with which words; presets, and policies that extend them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from platemark.errors import PolicyError
from platemark.safety.decision import Action
from platemark.safety.policy import MAX_BYTES, load_policy, parse_policy, presets
from platemark.safety.policy_model import LOCKED_CATEGORIES, LOCKED_LOW

GOOD = """version = 2
id = "studio"
fail = "closed"
image_filter = "available"
timeout_seconds = 5.0
[provenance]
require_watermark = true
[regenerate]
max = 2
[audit]
enabled = true
[people]
real_face_input = "deny"
[[people.named_persons.list]]
name = "Ada Example"
aliases = ["ada x"]
[[detectors]]
name = "nsfw"
sha256 = "1111111111111111111111111111111111111111111111111111111111111111"
[categories.weapon]
locked = true
[categories.weapon.prompt]
threshold = 0.5
action = "block"
terms = ["dagger"]
[categories.weapon.output_image]
threshold = 0.5
action = "blur"
severity = {low = 0.2, medium = 0.5, high = 0.8}
concepts = ["dagger"]
calibration = {"dagger" = -0.02}
[categories.weapon.input_image]
threshold = 0.5
action = "block"
concepts = ["sabre"]
[[rules]]
id = "armed_child"
all = [{signal = "weapon", at_least = "medium"}, {signal = "minor_term"}]
action = "block"
"""


def test_good_file_and_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "studio.toml"
    file.write_text(GOOD)
    policy = load_policy(file)
    assert policy.id == "studio"
    assert policy.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert policy.concepts == {"weapon": ("dagger", "sabre")}
    assert policy.image_rules("output_image")["weapon"].calibration == {"dagger": -0.02}
    assert policy.people.named_persons.list[0].aliases == ("ada x",)
    assert policy.rules[0].all[0].at_least == "medium"
    assert load_policy(str(file)) == policy


BAD = [
    ("version = 2", "version = 2\ncolour = 3", "unknown key 'colour'"),
    ('terms = ["dagger"]', 'terms = ["dagger"]\nterm = ["x"]', "unknown key 'categories.weapon.prompt.term'"),
    ("locked = true", "locket = true", "unknown key 'categories.weapon.locket'"),
    ("max = 2", "max = 2\nmin = 1", "unknown key 'regenerate.min'"),
    ('real_face_input = "deny"', 'real_face_input = "deny"\nfaces = 1', "unknown key 'people.faces'"),
    ('name = "nsfw"', 'name = "nsfw"\nsha = "1"', "unknown key 'detectors.0.sha'"),
    ("require_watermark = true", "require_watermark = true\nx = 1", "unknown key 'provenance.x'"),
    ("[audit]\nenabled = true", "[audit]\nenabled = true\nlevel = 1", "unknown key 'audit.level'"),
    ('id = "armed_child"', 'id = "armed_child"\nwhen = 1', "unknown key 'rules.0.when'"),
    ("version = 2", "version = 2\nsha256 = 'aa'", "unknown key 'sha256'"),
    ("version = 2", "version = 1", "version"),
    ("version = 2", "version = true", "version"),
    ('fail = "closed"', 'fail = "open"', "fail"),
    ('fail = "closed"\n', "", "fail"),
    ('image_filter = "available"', 'image_filter = "maybe"', "image_filter"),
    ("timeout_seconds = 5.0", "timeout_seconds = 0.0", "timeout_seconds"),
    ("timeout_seconds = 5.0", "timeout_seconds = inf", "timeout_seconds"),
    ("threshold = 0.5", "threshold = nan", "categories.weapon.prompt.threshold"),
    ("threshold = 0.5", "threshold = inf", "categories.weapon.prompt.threshold"),
    ("threshold = 0.5", "threshold = 0.0", "categories.weapon.prompt.threshold"),
    ("threshold = 0.5", "threshold = 1.01", "categories.weapon.prompt.threshold"),
    ("threshold = 0.5", 'threshold = "0.5"', "categories.weapon.prompt.threshold"),
    ("threshold = 0.5", "threshold = true", "categories.weapon.prompt.threshold"),
    ("low = 0.2", "low = 0.6", "the bands must rise"),
    ('concepts = ["dagger"]', 'concepts = ["  "]', "a concept is blank"),
    ('concepts = ["dagger"]', "concepts = [3]", "categories.weapon.output_image.concepts"),
    ('calibration = {"dagger" = -0.02}', 'calibration = {"sword" = 0.1}', "calibration names 'sword'"),
    ('terms = ["dagger"]', 'terms = ["?!"]', "no letter or digit"),
    ('action = "block"', 'action = "explode"', "categories.weapon.prompt.action"),
    ('action = "block"', 'action = "blur"', "a prompt cannot be answered with 'blur'"),
    ('action = "block"\nconcepts', 'action = "regenerate"\nconcepts', "an input image cannot be answered"),
    ("max = 2", "max = -1", "regenerate.max"),
    ("max = 2", "max = 2.5", "regenerate.max"),
    ('id = "studio"', 'id = "../studio"', "id"),
    ('real_face_input = "deny"', 'real_face_input = "maybe"', "people.real_face_input"),
    ('real_face_input = "deny"', 'real_face_input = "deny"\nface_threshold = 0.99', "people.face_threshold"),
    ('real_face_input = "deny"', 'real_face_input = "deny"\nminors = "blur"', "a mention in a prompt"),
    ("111111\"", "11111\"", "detectors.0.sha256"),
    ("[[detectors]]", '[[detectors]]\nname = "nsfw"\n[[detectors]]', "a name is given twice"),
    ('signal = "weapon"', 'signal = "wepon"', "there is no category or tag 'wepon'"),
    ('id = "armed_child"', 'id = "locked_minors"', "ids that begin with 'locked_'"),
    ('all = [{signal = "weapon", at_least = "medium"}, {signal = "minor_term"}]', "", "the rule has no condition"),
    ('minor_term"}]\naction = "block"', 'minor_term"}]\naction = "regenerate"', "is for output pictures alone"),
    ("categories.weapon", "categories.face", "has the name of a tag"),
    ("categories.weapon.prompt", 'categories."Big Weapon".prompt', "categories"),
    ("version = 2", "version = ", "not valid TOML"),
    ("version = 2", "version = 2\nversion = 2", "not valid TOML"),
    ("version = 2", 'extends = "nothing"\nversion = 2', "there is no preset 'nothing'"),
    ("version = 2", "extends = 3\nversion = 2", "there is no preset '3'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "complaint"), BAD)
def test_bad_file_names_the_file_and_the_key(old: str, new: str, complaint: str) -> None:
    assert GOOD.count(old) >= 1
    changed = GOOD.replace(old, new) if old == "categories.weapon" else GOOD.replace(old, new, 1)
    with pytest.raises(PolicyError) as caught:
        parse_policy(changed.encode(), "studio.toml")
    assert "studio.toml" in caught.value.message
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", LOCKED_CATEGORIES)
def test_a_low_band_cannot_lift_a_locked_rule(name: str) -> None:
    category = f"[categories.{name}.output_image]\nthreshold = 1.0\naction = 'allow'\nseverity = {{low = {{}}, medium = 1.0, high = 1.0}}\n"
    with pytest.raises(PolicyError, match="a locked rule stands on it"):
        parse_policy((GOOD + category.replace("{}", "0.51").replace("{{", "{").replace("}}", "}")).encode(), "x.toml")
    parse_policy((GOOD + category.replace("{}", str(LOCKED_LOW)).replace("{{", "{").replace("}}", "}")).encode(), "x.toml")


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"version = 2" + b"\x00", b"#" * (MAX_BYTES + 1), b"a = " + b"[" * 50_000], ids=lambda d: str(d[:4])
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
    assert len({load_policy(name).sha256 for name in presets()}) == 3
    monkeypatch.chdir(tmp_path)
    Path("standard").write_text("not a policy")
    assert load_policy(None) == load_policy("standard")
    with pytest.raises(PolicyError):
        load_policy(Path("standard"))


def test_strict_is_nowhere_laxer_than_standard() -> None:
    strict, standard = load_policy("strict"), load_policy("standard")
    assert strict.image_filter == "required"
    assert (strict.people.real_face_input, strict.audit.locked) == ("deny", True)
    for name, category in standard.categories.items():
        for stage in ("prompt", "input_image", "output_image"):
            theirs, mine = getattr(category, stage), getattr(strict.categories[name], stage)
            if theirs is None or not theirs.enabled:
                continue
            assert mine.enabled
            assert mine.action.rank >= theirs.action.rank
            assert mine.threshold <= theirs.threshold
            assert mine.severity.low <= theirs.severity.low
            assert set(getattr(mine, "terms", ())) >= set(getattr(theirs, "terms", ()))
            assert set(getattr(mine, "concepts", ())) >= set(getattr(theirs, "concepts", ()))


def test_no_preset_lets_sexual_content_about_minors_pass() -> None:
    for name in presets():
        policy = load_policy(name)
        assert policy.prompt_rules["minors"].action is Action.BLOCK
        assert policy.categories["minors"].locked


EXTENDING = 'extends = "strict"\nversion = 2\nid = "mine"\n'


def test_a_policy_extends_a_preset_key_by_key() -> None:
    """Strength adjustable: one threshold in a file of four lines."""
    own = b'extends = "standard"\nversion = 2\nid = "mine"\n[categories.weapon.output_image]\nthreshold = 0.6\n'
    policy, base = parse_policy(own, "mine.toml"), load_policy("standard")
    assert policy.image_rules("output_image")["weapon"].threshold == 0.6
    assert policy.image_rules("output_image")["weapon"].concepts == base.image_rules("output_image")["weapon"].concepts
    assert policy.prompt_rules == base.prompt_rules
    assert policy.sha256 not in (base.sha256, hashlib.sha256(own).hexdigest())


def test_lists_of_an_extending_policy_are_merged_by_name() -> None:
    more = '[[detectors]]\nname = "nsfw"\ntimeout_seconds = 2.0\n'
    more += '[[rules]]\nid = "undress"\nall = [{signal = "undress_intent"}]\naction = "flag"\n'
    policy = parse_policy(('extends = "standard"\nversion = 2\nid = "mine"\n' + more).encode(), "mine.toml")
    assert [d.timeout_seconds for d in policy.detectors if d.name == "nsfw"] == [2.0]
    assert {d.name for d in policy.detectors} == {d.name for d in load_policy("standard").detectors}
    assert [r.action for r in policy.rules if r.id == "undress"] == [Action.FLAG]


LOOSENINGS = [
    ("[categories.sexual]\nlocked = false", "categories.sexual.locked"),
    ("[categories.sexual.prompt]\nenabled = false", "categories.sexual.prompt.enabled"),
    ('[categories.sexual.prompt]\naction = "flag"', "categories.sexual.prompt.action"),
    ("[categories.sexual.output_image]\nthreshold = 0.9", "categories.sexual.output_image.threshold"),
    ("[categories.sexual.output_image]\nthresholds = {nsfw = 0.9}", "categories.sexual.output_image.threshold"),
    ("[categories.sexual.output_image]\nseverity = {low = 0.4, medium = 0.5, high = 0.8}", "categories.sexual.output_image.severity"),
    ('[categories.sexual.output_image]\ncombine = "all"', "categories.sexual.output_image.combine"),
    ('[categories.weapon.prompt]\nterms = ["gun"]', "categories.weapon.prompt.terms"),
    ("[categories.violence.prompt]\nbase_lexicon = false", "categories.violence.prompt.terms"),
    ('[categories.violence.prompt]\nexceptions = ["red"]', "categories.violence.prompt.exceptions"),
    ('[categories.weapon.output_image]\nconcepts = ["bomb"]', "categories.weapon.output_image.concepts"),
    ('[categories.weapon.output_image]\ncalibration = {"bomb" = -0.5}', "categories.weapon.output_image.calibration"),
    ("[audit]\nenabled = false", "audit.enabled"),
    ("[audit]\nlocked = false", "audit.enabled"),
    ("[audit]\nprompts_in_clear = true", "audit.prompts_in_clear"),
    ("[audit]\nretain_days = 3", "audit.retain_days"),
    ('[people]\nreal_face_input = "allow"', "people.real_face_input"),
    ("[people]\nlocked = false", "people.locked"),
    ("[people]\nface_threshold = 0.6", "people.face_threshold"),
    ('[people.named_persons]\naction = "flag"', "people.named_persons.action"),
    ("[people.named_persons]\nbase_list = false", "people.named_persons.list"),
    ('image_filter = "available"', "image_filter"),
    ('[[rules]]\nid = "undress"\nall = [{signal = "undress_intent"}]\naction = "flag"', "rules.undress"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "key"), LOOSENINGS)
def test_what_a_preset_locks_can_only_be_made_stricter(change: str, key: str) -> None:
    with pytest.raises(PolicyError, match=key.replace(".", r"\.")) as caught:
        parse_policy((EXTENDING + change).encode(), "mine.toml")
    assert "mine.toml" in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        "[categories.sexual.output_image]\nthreshold = 0.2",
        "[categories.weapon.prompt]\nexceptions = []",
        "[audit]\nretain_days = 3650",
        "[people]\nface_threshold = 0.3",
    ],
)
def test_what_a_preset_locks_can_be_made_stricter(change: str) -> None:
    assert parse_policy((EXTENDING + change).encode(), "mine.toml").id == "mine"
