"""Readers of the JSON that the C2PA library makes of a manifest store. The store is a stranger's: every value may be of any kind.

Knows nothing of what follows from a code or a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from platemark.provenance.record import RECORD_LABEL

MAX_TEXT = 500  # characters kept of one value
INACCESSIBLE = "manifest.inaccessible"


@dataclass(frozen=True)
class Ingredient:
    """What a picture was made from. `failures`: of its integrity, as found now or as recorded when it was taken in; `remote`: where its
    credentials lie, if they were not at hand."""

    title: str
    relationship: str
    signed: bool
    failures: tuple[str, ...] = ()
    remote: str = ""


def active(parsed: dict[str, Any]) -> dict[str, Any]:
    """The active manifest; empty where there is none."""
    return _dict(_dict(parsed.get("manifests")).get(str(parsed.get("active_manifest") or "")))


def claim_version(parsed: dict[str, Any]) -> int:
    """The version of the active manifest's claim; 1 where nothing says more."""
    version = active(parsed).get("claim_version")
    return version if isinstance(version, int) else 1


def codes(parsed: dict[str, Any], kind: str) -> set[str]:
    """Status codes of the active manifest: `success`, `informational` or `failure`."""
    return set(_codes(_dict(parsed.get("validation_results")).get("activeManifest"), kind))


def failure_codes(parsed: dict[str, Any]) -> set[str]:
    """Failures of the active manifest, in either of the two places where the library puts them."""
    return codes(parsed, "failure") | set(_status(_statuses(parsed, of_others=False)))


def delta_codes(parsed: dict[str, Any]) -> set[str]:
    """Failures of ingredients that were not known when the active manifest was signed."""
    deltas = _list(_dict(parsed.get("validation_results")).get("ingredientDeltas"))
    found = {code for delta in deltas for code in _codes(_dict(delta).get("validationDeltas"), "failure")}
    return found | set(_status(_statuses(parsed, of_others=True)))


def ingredients(parsed: dict[str, Any], other_codes: tuple[str, ...]) -> Iterator[Ingredient]:
    """The ingredients of every manifest, with the failures recorded for them, which the library's own state passes over.

    Those of the active manifest first, then those of its ingredients, and so on down. `other_codes`: beginnings of codes that say nothing
    of integrity.
    """
    for manifest in _downwards(parsed):
        for found in _list(manifest.get("ingredients")):
            one = _dict(found)
            failures = {code for code in _recorded(one) if not code.startswith(other_codes)}
            title, relation = str(one.get("title") or ""), str(one.get("relationship") or "")
            signed = bool(one.get("active_manifest"))
            yield Ingredient(title[:MAX_TEXT], relation[:MAX_TEXT], signed, tuple(sorted(failures)), _remote(one))


def _downwards(parsed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every manifest once, from the active one down; those that nothing leads to come last. The library's own order changes at random."""
    left = {label: _dict(manifest) for label, manifest in _dict(parsed.get("manifests")).items()}
    level = [str(parsed.get("active_manifest") or "")]
    while left:
        level = [label for label in level if label in left] or [min(left)]
        label = level.pop(0)
        manifest = left.pop(label)
        yield manifest
        level += [str(_dict(one).get("active_manifest") or "") for one in _list(manifest.get("ingredients"))]


def actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for data in _assertions(manifest, "c2pa.actions"):
        yield from (action for action in _list(data.get("actions")) if isinstance(action, dict))


def soft_bindings(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(algorithm, value); values may come as text or as a list of bytes, depending on who wrote them."""
    for data in _assertions(manifest, "c2pa.soft-binding"):
        for block in _list(data.get("blocks")):
            value = _dict(block).get("value")
            if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
                value = bytes(value).hex()
            if isinstance(value, str):
                yield str(data.get("alg"))[:MAX_TEXT], value[:MAX_TEXT]


def generator(manifest: dict[str, Any]) -> str:
    """The program that made the claim: "name/version"."""
    info = _first_info(manifest)
    named = "/".join(str(info[key]) for key in ("name", "version") if info.get(key))
    return (named or str(manifest.get("claim_generator") or ""))[:MAX_TEXT]


def spec_version(manifest: dict[str, Any]) -> str:
    return str(_first_info(manifest).get("specVersion") or "")[:MAX_TEXT]


def agent(found: Iterable[dict[str, Any]]) -> str:
    """The software agent of the first action that names one: "name/version", or its name alone."""
    for action in found:
        value = action.get("softwareAgent")
        parts = [value] if isinstance(value, str) else [str(_dict(value)[key]) for key in ("name", "version") if _dict(value).get(key)]
        if parts:
            return "/".join(parts)[:MAX_TEXT]
    return ""


def first_text(found: Iterable[dict[str, Any]], key: str) -> str:
    return next((str(action[key]).strip()[:MAX_TEXT] for action in found if action.get(key)), "")


def record(manifest: dict[str, Any]) -> dict[str, str] | None:
    """The text and number fields of Platemark's own assertion; None where there is none."""
    for data in _assertions(manifest, RECORD_LABEL):
        return {str(key)[:80]: str(value)[:MAX_TEXT] for key, value in list(data.items())[:50] if isinstance(value, str | int | float)}
    return None


def _recorded(ingredient: dict[str, Any]) -> Iterator[str]:
    """Failures that the claim recorded when it took the ingredient in, in today's form and in the one of old claims."""
    results = _dict(ingredient.get("validation_results"))
    yield from _codes(results.get("activeManifest"), "failure")
    for delta in _list(results.get("ingredientDeltas")):
        yield from _codes(_dict(delta).get("validationDeltas"), "failure")
    yield from _status(ingredient.get("validation_status"))


def _remote(ingredient: dict[str, Any]) -> str:
    for failure in _list(_dict(_dict(ingredient.get("validation_results")).get("activeManifest")).get("failure")):
        if _dict(failure).get("code") == INACCESSIBLE:
            return str(failure.get("url") or "an unknown place")[:MAX_TEXT]
    return ""


def _codes(results: Any, kind: str) -> Iterator[str]:
    for failure in _list(_dict(results).get(kind)):
        yield str(_dict(failure).get("code"))[:MAX_TEXT]


def _statuses(parsed: dict[str, Any], *, of_others: bool) -> list[Any]:
    """The library's flat list has the failures of ingredients too; their URLs name their manifests."""
    others = _dict(parsed.get("manifests")).keys() - {str(parsed.get("active_manifest") or "")}
    return [one for one in _list(parsed.get("validation_status")) if (_manifest_of(one) in others) == of_others]


def _manifest_of(status: Any) -> str:
    """The label in "self#jumbf=/c2pa/LABEL/…"; empty where there is none."""
    return f"{_dict(status).get('url')}".partition("=/c2pa/")[2].partition("/")[0]


def _status(statuses: Any) -> Iterator[str]:
    """Codes of a list of statuses; old claims list successes there too."""
    for status in _list(statuses):
        code = str(_dict(status).get("code"))
        if not code.endswith((".match", ".validated", ".trusted", ".insideValidity", ".unknownProvenance", ".skipped")):
            yield code[:MAX_TEXT]


def _assertions(manifest: dict[str, Any], label: str) -> Iterator[dict[str, Any]]:
    for assertion in _list(manifest.get("assertions")):
        if str(_dict(assertion).get("label")).startswith(label) and isinstance(assertion.get("data"), dict):
            yield assertion["data"]


def _first_info(manifest: dict[str, Any]) -> dict[str, Any]:
    return _dict(next(iter(_list(manifest.get("claim_generator_info"))), None))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
