"""The policy's provenance block reaches the stamp, key by key, and nonsense in it is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from platemark.provenance.stamp import DEFAULT_STAMP_RULES
from platemark.safety import policy_provenance
from platemark.safety.policy_provenance import ProvenanceRules
from platemark.stamping import stamp_rules

FULL: dict[str, Any] = {
    "require_watermark": False,
    "prompts_in_metadata": True,
    "prompt_writer": "Ada",
    "web_ui_text": False,
    "creator": "Studio",
    "rights": "© 2026 Studio",
    "rights_url": "https://studio.example/rights",
    "producer": "Producer",
    "do_not_train": True,
    "timestamp": "try",
    "timestamp_url": "http://tsa.example/",
    "timestamp_seconds": 2.5,
    "licences": [{"part": "lora", "name": "ink", "licence": "MIT", "url": "https://example.org/l"}],
}


def test_every_key_reaches_the_stamp() -> None:
    assert set(FULL) == set(ProvenanceRules.model_fields) - {"latent_mark"}  # which is the press's: see test_press_images
    rules = stamp_rules(ProvenanceRules.model_validate(FULL))
    assert rules.require_watermark is False
    assert vars(rules.metadata) == {
        "prompts_in_clear": True, "prompt_writer": "Ada", "creator": "Studio", "rights": "© 2026 Studio",
        "rights_url": "https://studio.example/rights", "producer": "Producer", "do_not_train": True, "web_ui_text": False,
    }  # fmt: skip
    assert (rules.timestamp.mode, rules.timestamp.url, rules.timestamp.budget_seconds) == ("try", "http://tsa.example/", 2.5)
    assert [str(licence) for licence in rules.licences] == ["lora ink: MIT (https://example.org/l)"]


def test_the_least_block_gives_the_defaults() -> None:
    assert stamp_rules(ProvenanceRules.model_validate({"require_watermark": True})) == DEFAULT_STAMP_RULES


@pytest.mark.parametrize(
    "bad",
    [
        {"timestamp": "required", "timestamp_url": None},
        {"timestamp_url": "ftp://tsa.example/"},
        {"timestamp_url": "http://"},
        {"timestamp_seconds": 0.0},
        {"timestamp_seconds": float("nan")},
        {"creator": ""},
        {"rights": "two\nlines"},
        {"rights_url": "javascript:alert(1)"},
        {"licences": [{"part": "vae", "name": "x", "licence": "MIT"}]},
        {"licences": [{"part": "model", "name": "x", "licence": "MIT"}] * 21},
        {"do_not_train": "yes"},
        {"no_such_key": True},
    ],
)
def test_nonsense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProvenanceRules.model_validate(FULL | bad)


def test_the_docstring_shows_every_key() -> None:
    shown = set(re.findall(r"^(\w+) = ", policy_provenance.__doc__ or "", re.MULTILINE))
    assert shown - {"part", "name", "licence", "url"} == set(ProvenanceRules.model_fields) - {"licences"}
