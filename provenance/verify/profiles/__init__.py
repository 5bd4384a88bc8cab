"""Regimes of marking, each a data file: which fields a file carries, lacks or has wrong, and the clause that asks for them.

A profile says nothing of whether a duty applies or is met, and each says so. Adding a regime is adding a `NAME.toml` here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from platemark.errors import InputError
from platemark.provenance.claims import AI_SOURCE_TYPES, source_kind
from platemark.provenance.verify.report import ProfileResult, ProfileRow, VerifyReport

_NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SHOWN = 200  # characters of a value
Finding = tuple[Literal["present", "missing", "wrong", "not-checked"], str]
_MISSING: Finding = ("missing", "")


class Row(BaseModel):
    """One field of a regime. `from`: facts that may hold it, the first that is there counts; `rule`: what a right value is.

    `good`, `none`, `unknown`: for the rules `state` and `one-of`, the values that count as present, as missing, and as not checked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    clause: str
    field: str
    level: Literal["required", "encouraged"] = "required"
    sources: tuple[str, ...] = Field(alias="from", min_length=1)
    rule: Literal["text", "key", "time", "source-type", "source-uri", "one-of", "state"] = "text"
    good: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Profile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    notice: str
    rows: tuple[Row, ...] = Field(min_length=1)


def names() -> tuple[str, ...]:
    """The profiles that there are."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.toml")))


@cache
def load(name: str) -> Profile:
    """A profile by its name. Raises `InputError` for a name that there is not."""
    if name not in names():
        raise InputError(f"there is no profile {name[:40]!r}", f"use {', '.join(names())}")
    return Profile.model_validate(tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8")))


def apply_profile(name: str, report: VerifyReport) -> ProfileResult:
    """A profile's rows for what a report says. Raises `InputError` for a name that there is not."""
    profile, facts = load(name), facts_of(report)
    return {"name": name, "title": profile.title, "notice": profile.notice, "rows": [judge_row(row, facts) for row in profile.rows]}


def facts_of(report: VerifyReport) -> dict[str, str]:
    """Every fact that a profile may ask for, by name: `c2pa.…`, `c2pa.record.…`, `xmp.…`, `aigc.…`, `watermark.state`."""
    c2pa, metadata = report.layers["c2pa"], report.layers["metadata"]
    facts = {f"c2pa.{key}": str(value) for key, value in c2pa.items() if isinstance(value, str)}
    facts |= {f"c2pa.record.{key}": value for key, value in c2pa.get("record", {}).items()}
    facts["c2pa.actions"] = ", ".join(c2pa.get("actions", ()))
    agent = c2pa.get("software_agent") or c2pa.get("claim_generator", "")
    facts["c2pa.software_name"], _, facts["c2pa.software_version"] = agent.partition("/")
    if c2pa.get("trust") == "development identity":
        facts.pop("c2pa.organization", None)  # it names nobody
    facts |= {f"xmp.{key}": value for key, value in metadata.get("fields", {}).items()}
    facts["watermark.state"] = report.layers["watermark"]["state"]
    for claim in metadata.get("claims", ()):
        if claim["source"].startswith("aigc label"):
            facts |= {"aigc.form": claim["form"]} | {f"aigc.{key}": value for key, value in claim["label"].items()}
    return facts


def judge_row(row: Row, facts: Mapping[str, str]) -> ProfileRow:
    """One row, from the first of its facts that is there."""
    key = next((source for source in row.sources if facts.get(source) or (row.rule == "key" and source in facts)), None)
    value = "" if key is None else facts[key]
    status, why = _MISSING if key is None else _judged(row, value)
    out: ProfileRow = {"id": row.id, "clause": row.clause, "field": row.field, "status": status, "level": row.level}
    if key is not None and status != "missing":
        out |= {"value": value[:_SHOWN], "where": key.partition(".")[0]}
    return {**out, "why": why} if why else out


def _judged(row: Row, value: str) -> Finding:
    if row.rule in ("state", "one-of"):
        return _by_list(row, value)
    if row.rule == "time":
        return ("present", "") if _is_time(value) else ("wrong", "this is no date with a time (RFC 3339)")
    if row.rule == "source-uri" and not value.startswith(_NEWSCODES):
        return "wrong", f"this is no URI under {_NEWSCODES}"
    if row.rule in ("source-type", "source-uri") and source_kind(value) not in AI_SOURCE_TYPES:
        return "wrong", "this term does not speak of AI"
    return ("present", "") if row.rule == "key" or value.strip() else ("missing", "")


def _by_list(row: Row, value: str) -> Finding:
    if value in row.good:
        return "present", ""
    if value in row.none:
        return "missing", ""
    if value in row.unknown:
        return "not-checked", "no watermark key is held here" if value == "no-key" else "the picture cannot be read"
    return "wrong", f"{value[:_SHOWN]!r} is none of {', '.join(row.good)}"


def _is_time(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return "T" in value or " " in value
