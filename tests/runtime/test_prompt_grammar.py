"""Weights in prompts: what is understood, what stays text, and that nothing is lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platemark.errors import InputError
from platemark.runtime.prompt_grammar import Segment, parse


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("((big)) [small]", [("big", 1.21), (" ", 1), ("small", 1 / 1.1)]),
        (r"a \(b\) \[c\] \\ d", [("a (b) [c] \\ d", 1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("(a:0)", [("a", 0)]),
        ("( ratio 1:2 and more )", [(" ratio 1:2 and more ", 1.1)]),
        (r"(a\):1.2)", [("a)", 1.2)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("open ( and close ]", [("open ( and close ]", 1)]),
        ("()", [("", 1)]),
        ("", [("", 1)]),
        ("\\", [("\\", 1)]),
    ],
)
def test_what_is_understood(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = parse(prompt)
    assert [segment.text for segment in found] == [text for text, _ in expected]
    assert [segment.weight for segment in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("prompt", ["(a:10.5)", "(a:-1)", "(" * 40 + "a" + ")" * 40])
def test_a_weight_out_of_range_is_refused_without_quoting_the_prompt(prompt: str) -> None:
    with pytest.raises(InputError, match="weight") as caught:
        parse(prompt)
    assert prompt not in str(caught.value)


@given(st.text(alphabet=st.characters(blacklist_characters="()[]\\", blacklist_categories=("Cs",))))
def test_text_without_brackets_is_one_segment_unchanged(text: str) -> None:
    assert parse(text) == (Segment(text, 1.0),)


@given(st.text(alphabet="ab ()[]:\\1.", max_size=60))
def test_no_letter_is_lost_and_none_invented(text: str) -> None:
    try:
        found = parse(text)
    except InputError:
        return
    joined = "".join(segment.text for segment in found)
    assert [c for c in joined if c in "ab"] == [c for c in text if c in "ab"]
    assert all(left.weight != right.weight for left, right in pairwise(found))


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_an_escaped_text_is_itself(text: str) -> None:
    escaped = "".join(f"\\{c}" if c in "()[]\\" else c for c in text)
    assert "".join(segment.text for segment in parse(escaped)) == text
    assert {segment.weight for segment in parse(escaped)} == {1.0}
