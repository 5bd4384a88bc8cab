"""What a verification says: plain data with a fixed shape, of which the JSON schema is made. Knows nothing of how it was found."""

from __future__ import annotations

import json
from typing import Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, with_config
from typing_extensions import TypedDict  # before Python 3.12 pydantic takes this one alone

SCHEMA_VERSION = 1
Verdict = Literal[
    "trusted", "intact-untrusted", "tampered", "corrupt", "recovered-by-watermark", "unsigned-claims", "conflict", "none"
]  # fmt: skip
VERDICTS: tuple[Verdict, ...] = (
    "corrupt", "tampered", "conflict", "trusted", "intact-untrusted", "recovered-by-watermark", "unsigned-claims", "none"
)  # fmt: skip
_CLOSED = ConfigDict(extra="forbid")


@with_config(_CLOSED)
class Axes(TypedDict):
    """Three answers that are kept apart.

    `integrity`: is the content what was signed (`unsigned` where nothing is signed)? `trust`: is the signer known? `recovery`: by what
    could the origin of a file without usable credentials be found?
    """

    integrity: Literal["intact", "tampered", "corrupt", "unsigned"]
    trust: Literal["trusted", "untrusted", "development identity", "unsigned"]
    recovery: Literal["by-watermark", "by-perceptual-hash", "none"]


@with_config(_CLOSED)
class IngredientFacts(TypedDict):
    """What a picture was made from; `failures` are of its integrity, `remote` is where its credentials lie, which were not fetched."""

    title: str
    relationship: str
    signed: bool
    failures: list[str]
    remote: str


@with_config(_CLOSED)
class SoftBinding(TypedDict):
    algorithm: str
    value: str


@with_config(_CLOSED)
class Credentials(TypedDict):
    """C2PA credentials; empty fields are left out."""

    state: Literal["absent", "valid", "invalid", "corrupt", "remote"]
    source: NotRequired[Literal["embedded", "sidecar", "registry"]]
    detail: NotRequired[str]
    label: NotRequired[str]
    signer: NotRequired[str]
    organization: NotRequired[str]
    claim_generator: NotRequired[str]
    spec_version: NotRequired[str]
    trust: NotRequired[Literal["trusted", "untrusted", "development identity"]]
    failures: NotRequired[list[str]]
    trust_failures: NotRequired[list[str]]
    ingredient_failures: NotRequired[list[str]]
    ingredients: NotRequired[list[IngredientFacts]]
    actions: NotRequired[list[str]]
    digital_source_type: NotRequired[str]
    soft_bindings: NotRequired[list[SoftBinding]]
    created: NotRequired[str]
    software_agent: NotRequired[str]
    time_stamp: NotRequired[Literal["none", "trusted", "untrusted", "invalid"]]
    signed_at: NotRequired[str]
    record: NotRequired[dict[str, str]]


@with_config(_CLOSED)
class CredentialLayer(Credentials):
    """The file's own credentials, and under `recovered` those that the registry kept for the picture that its watermark names."""

    recovered: NotRequired[Credentials]


@with_config(_CLOSED)
class WatermarkLayer(TypedDict):
    """Platemark's own watermark. `p_value`: that an unmarked picture gives a finding this strong with one of the keys that were tried."""

    state: Literal["detected", "inconclusive", "not-detected", "no-key", "unreadable"]
    p_value: NotRequired[float]
    keys_tried: NotRequired[int]
    deep: NotRequired[bool]
    key_id: NotRequired[str]
    layout: NotRequired[str]
    payload: NotRequired[str]
    content_id: NotRequired[int]
    issuer: NotRequired[int]
    symbol_error_rate: NotRequired[float | None]
    geometry: NotRequired[dict[str, Any]]
    detail: NotRequired[str]
    remedy: NotRequired[str]


@with_config(_CLOSED)
class MetadataLayer(TypedDict):
    """Unsigned claims: each has a `source` and what it says. `fields`: every XMP field that was read."""

    state: Literal["claims", "none", "unreadable"]
    claims: NotRequired[list[dict[str, Any]]]
    fields: NotRequired[dict[str, str]]
    detail: NotRequired[str]
    remedy: NotRequired[str]


@with_config(_CLOSED)
class RegistryLayer(TypedDict):
    """The registry's record of the picture. `compared`: whether the looks could be compared (those of crops and wide turns cannot);
    `distance`: of 256 bits of the perceptual hash, after mirroring and turns were undone. `differences`: from the registered file.

    `same_file` says that the bytes are those that were registered; it decides nothing, because signed files have bytes that nobody signs.
    """

    state: Literal["found", "similar", "not-found", "no-registry", "not-asked", "unavailable"]
    content_id: NotRequired[int]
    issuer: NotRequired[int]
    created: NotRequired[str]
    compared: NotRequired[bool]
    distance: NotRequired[int]
    same_file: NotRequired[bool]
    differences: NotRequired[list[str]]
    pruned: NotRequired[str]
    record: NotRequired[dict[str, Any]]
    detail: NotRequired[str]
    remedy: NotRequired[str]


@with_config(_CLOSED)
class Layers(TypedDict):
    c2pa: CredentialLayer
    watermark: WatermarkLayer
    metadata: MetadataLayer
    registry: RegistryLayer


@with_config(_CLOSED)
class ProfileRow(TypedDict):
    """One field of a regime. `where`: the layer that gave the value; `why`: what is wrong, or why it could not be looked for."""

    id: str
    clause: str
    field: str
    status: Literal["present", "missing", "wrong", "not-checked"]
    level: Literal["required", "encouraged"]
    value: NotRequired[str]
    where: NotRequired[str]
    why: NotRequired[str]


@with_config(_CLOSED)
class ProfileResult(TypedDict):
    name: str
    title: str
    notice: str
    rows: list[ProfileRow]


class VerifyReport(BaseModel):
    """What a file says of its origin.

    `layers` has `c2pa`, `watermark`, `metadata` and `registry`; each has a `state` and what was found. `content_id` and `issuer` are those
    of the watermark, else of the credentials. `sha256`: of the bytes that were verified; it is no identity. `summary` says it in sentences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    axes: Axes
    content_id: int | None
    issuer: int | None
    sha256: str
    summary: list[str]
    layers: Layers
    profile: ProfileResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.model_dump(mode="json", exclude=None if self.profile else {"profile"})


class FileReport(VerifyReport):
    """One line of `platemark verify --json`: a report with its file."""

    file: str


class ErrorFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    message: str
    remedy: str


class FileError(BaseModel):
    """One line of `platemark verify --json` for a file that could not be verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    error: ErrorFacts


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one line of `platemark verify --json`."""
    from pydantic import RootModel

    class VerifyLine(RootModel[FileReport | FileError]):
        """One line of `platemark verify --json`: a report, or the error of a file that could not be verified."""

    schema = VerifyLine.model_json_schema(mode="serialization")
    return schema | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"platemark verify {SCHEMA_VERSION}"}


def schema_text() -> str:
    """What `docs/verify.schema.json` holds."""
    return json.dumps(json_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """JSON types alone, and no lone surrogates, which strangers' texts may hold and no encoder takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {plain(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and value != value:
        return None
    return value
