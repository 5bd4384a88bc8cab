"""C2PA Content Credentials: signs picture bytes in memory, or a file as it is, with c2pa-python. No network but a time-stamp authority's.

What is signed has been read back by the library before it is returned. Its contexts and signers are those of `sessions.py`. Knows nothing
of watermark signals or of the registry.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platemark import __version__
from platemark.errors import DamagedImageError, ImageError, InputError, ProvenanceUnavailable
from platemark.imaging import decode, probe, read_bytes, sniff
from platemark.provenance.c2pa_context import one_line, open_context
from platemark.provenance.callbacks import Guarded
from platemark.provenance.credentials import read
from platemark.provenance.files import write_atomically
from platemark.provenance.identity import Identity
from platemark.provenance.manifest import PARENT_ID, Signing, existing, generated
from platemark.provenance.metadata.rules import DEFAULT_RULES, MetadataRules
from platemark.provenance.record import Facts, TimestampState
from platemark.provenance.sessions import session
from platemark.provenance.timestamps import NO_TIMESTAMP, Relay, TimestampRule, relayed

GENERATOR = f"platemark/{__version__}"
SUFFIXES = {
    "png": (".png", ".apng"), "jpeg": (".jpg", ".jpeg", ".jpe"), "webp": (".webp",), "avif": (".avif",), "tiff": (".tif", ".tiff"),
    "gif": (".gif",),
}  # fmt: skip
_STORE_WORDS = (b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71", b"dcterms:provenance")
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SOURCE_TERMS = (
    "algorithmicMedia", "algorithmicallyEnhanced", "composite", "compositeCapture", "compositeSynthetic",
    "compositeWithTrainedAlgorithmicMedia", "computationalCapture", "dataDrivenMedia", "digitalCapture", "digitalCreation", "humanEdits",
    "multiFrameComputationalCapture", "negativeFilm", "positiveFilm", "print", "screenCapture", "trainedAlgorithmicMedia",
    "virtualRecording",
)  # fmt: skip


@dataclass(frozen=True)
class SignOptions:
    """`parent`: the file that the picture was made from (img2img, inpainting), which becomes its ingredient with all that it carries."""

    parent: bytes | None = None
    timestamp: TimestampRule = NO_TIMESTAMP
    rules: MetadataRules = DEFAULT_RULES


DEFAULT_OPTIONS = SignOptions()


@dataclass(frozen=True)
class Signed:
    """Signed bytes, the manifest store alone, and the label of the active manifest.

    `timestamp`: `trusted` (by the rule's anchors), `unverified` (the rule has none) or `none`; `timestamp_failure` says why there is none
    where one was tried for.
    """

    data: bytes
    manifest: bytes
    label: str
    timestamp: TimestampState = "none"
    timestamp_failure: str | None = None


def sign(
    data: bytes,
    mime: str,
    facts: Facts,
    identity: Identity,
    *,
    created: str,
    generator: str,
    content_id: int,
    payload: str | None,
    options: SignOptions = DEFAULT_OPTIONS,
) -> Signed:
    """Signs the encoded bytes of a picture that we made.

    `created`: RFC 3339; `generator`: "platemark/0.1.0"; `payload`: of the watermark in the pixels (hex), or None. Bytes that carry
    credentials already become the ingredient themselves, so no earlier manifest is lost.
    Raises `ProvenanceUnavailable`; `InputError` (the parent's own credentials are broken, or there are two parents).
    """
    parent = _parent(data, mime, options.parent)
    signing = Signing(created, generator, parent is not None, payload, options.rules)
    manifest = generated(facts, signing, content_id=content_id, issuer=identity.issuer)
    return _sign(_Job(data, mime, manifest, parent), identity, options.timestamp)


def sign_bytes(data: bytes, identity: Identity, *, source_type: str | None = None, options: SignOptions = DEFAULT_OPTIONS) -> Signed:
    """Signs a PNG (also 16-bit and animated), JPEG, WebP, AVIF, TIFF or GIF file as it is: no pixel changes, nothing is decoded.

    The claim says that the file was opened, with the file itself, and the credentials that it carries, as ingredient. `source_type` states
    instead how it was made: an IPTC digital source type, as a URI or its last part ("trainedAlgorithmicMedia"); that is for files
    without credentials. Raises `ImageError` (not a picture of these formats), `InputError`, `ProvenanceUnavailable`.
    """
    header = probe(data, max_pixels=2**40)  # nothing is decoded, so the number of pixels does not matter
    signed_before = read(data, header.mime, b"").state != "absent"
    if options.parent is not None:
        raise InputError("a file that is signed as it is has no parent but itself", "leave the parent out")
    if source_type is not None and signed_before:
        raise InputError("the file carries credentials that say how it was made", "sign it without stating a source type")
    source_type = None if source_type is None else _source_uri(source_type)
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    parent = None if source_type is not None else _checked(data)
    manifest = existing(Signing(created, GENERATOR, parent is not None, None, options.rules), source_type)
    return _sign(_Job(data, header.mime, manifest, parent), identity, options.timestamp)


def _source_uri(term: str) -> str:
    """The URI of an IPTC term, given so or by its last part. A misspelt one would be signed as it is, and mean nothing to anybody."""
    name = term.removeprefix(_SOURCE_TYPE)
    if name not in _SOURCE_TERMS:
        raise InputError(f"there is no IPTC digital source type {term[-80:]!r}", f"use {', '.join(_SOURCE_TERMS)}")
    return _SOURCE_TYPE + name


def sign_file(
    source: str | Path, target: str | Path, identity: Identity, *, source_type: str | None = None, options: SignOptions = DEFAULT_OPTIONS
) -> Signed:
    """As `sign_bytes`, from a file to a file, which may be the same one.

    `target` is written whole (temporary file, read back, fsync, rename) or not at all. Raises `InputError` also where the target cannot be
    written or its suffix names another format, and `DamagedImageError` for a picture that every verifier would call corrupt.
    """
    data = read_bytes(source)
    name = sniff(data)
    if name is not None and Path(target).suffix.lower() not in SUFFIXES[name]:
        raise InputError(
            f"the file is {name.upper()}, and {Path(target).name[-60:]!r} says otherwise", f"use the suffix {SUFFIXES[name][0]}"
        )
    _refuse_damaged(data)
    signed = sign_bytes(data, identity, source_type=source_type, options=options)
    verified(signed, f"image/{name}")
    write_atomically(target, signed.data)
    return signed


def _refuse_damaged(data: bytes) -> None:
    """Decodes the picture, where it is not too large for that: nothing is signed that is cut short."""
    try:
        decode(data)
    except DamagedImageError:
        raise
    except ImageError:
        return  # too large to decode, or no picture, which `sign_bytes` says


def verified(signed: Signed, mime: str) -> Signed:
    """The same, once its bytes have been read anew and found whole. Raises `ProvenanceUnavailable`."""
    report = read(signed.data, mime, b"")
    if report.state != "valid" or report.label != signed.label:
        why = ", ".join(report.failures + report.ingredient_failures) or report.detail or report.state
        raise ProvenanceUnavailable(f"the signed file does not verify: {why}", "report this with the file's format and size")
    return signed


@dataclass(frozen=True)
class _Job:
    """One signature: the bytes, their type, the manifest definition, and the ingredient."""

    data: bytes
    mime: str
    manifest: dict[str, Any]
    parent: bytes | None


def _carries(data: bytes, mime: str) -> bool:
    """Whether freshly encoded bytes hold a manifest store, or name one. Looks for their words first: nearly every picture ends there.

    The words are long ones, which a search skips through: of the box type of a store, and of the XMP property that names a remote one.
    """
    return any(word in data for word in _STORE_WORDS) and read(data, mime, b"").state != "absent"


def _parent(data: bytes, mime: str, given: bytes | None) -> bytes | None:
    if _carries(data, mime):
        if given is not None:
            raise InputError("the picture carries credentials of its own and was given a parent too", "sign it without the parent")
        return _checked(data)
    return None if given is None else _checked(given)


def _checked(parent: bytes) -> bytes:
    """The parent, unless its own credentials do not hold: a claim on top would make broken ones look sound."""
    name = sniff(parent)
    if name is None:
        raise ImageError("the input picture is of no known format", "use a PNG, JPEG, WebP, AVIF, TIFF or GIF picture")
    report = read(parent, f"image/{name}", b"")
    if report.state in ("invalid", "corrupt"):
        why = ", ".join(report.failures + report.ingredient_failures) or report.detail
        raise InputError(f"the input picture's own credentials do not hold: {why}", "use an untouched copy, or one without credentials")
    if report.state == "remote":
        raise InputError(f"the input picture's credentials are elsewhere and are not fetched: {report.detail[:200]}", "embed them first")
    return parent


def _sign(job: _Job, identity: Identity, rule: TimestampRule) -> Signed:
    if identity.expires <= datetime.now(UTC):
        raise ProvenanceUnavailable(f"the signing certificate expired on {identity.expires:%Y-%m-%d}", "renew it, then start again")
    if rule.mode == "off":
        return _once(job, identity, None)
    with relayed(rule) as relay:
        try:
            return _stamped(_once(job, identity, relay), job.mime, rule)
        except ProvenanceUnavailable as error:
            failure = relay.failure or f"the time-stamp authority's answer is of no use: {error.message}"
    plain = _once(job, identity, None)  # fails by itself where it was not the stamp
    if rule.mode == "required":
        raise ProvenanceUnavailable(failure, 'check the authority\'s address, or do without a stamp (in a policy: timestamp = "try")')
    return replace(plain, timestamp_failure=failure)


def _once(job: _Job, identity: Identity, relay: Relay | None) -> Signed:
    import c2pa  # type: ignore[import-untyped]

    out = io.BytesIO()
    guard = None if identity.callback is None else Guarded(identity.callback, identity.algorithm, identity.chain_pem)
    try:
        with (
            session(identity, guard, None if relay is None else relay.url) as (context, signer),
            c2pa.Builder(job.manifest, context=context) as builder,
        ):
            if job.parent is not None:
                ingredient = {"title": "input picture", "relationship": "parentOf", "label": PARENT_ID}
                builder.add_ingredient(ingredient, f"image/{sniff(job.parent)}", io.BytesIO(job.parent))
            store = builder.sign(signer, job.mime, io.BytesIO(job.data), out)
    except c2pa.C2paError as error:
        if guard is not None:
            guard.reraise()
        raise ProvenanceUnavailable(
            f"signing failed: {one_line(error)}", "run `platemark keys show`; the certificate or the format may not do"
        ) from error
    signed = Signed(out.getvalue(), bytes(store), job.manifest["label"])
    return signed if job.parent is None else verified(signed, job.mime)  # of ingredients the library's own reading back sees nothing


def _stamped(signed: Signed, mime: str, rule: TimestampRule) -> Signed:
    """Reads the stamp of a signature. Raises `ProvenanceUnavailable` where there is none, or none that the rule's anchors vouch for."""
    import c2pa

    try:
        with open_context(rule.anchors) as context, c2pa.Reader(mime, io.BytesIO(signed.data), context=context) as reader:
            results = (json.loads(reader.json()).get("validation_results") or {}).get("activeManifest") or {}
    except c2pa.C2paError as error:
        raise ProvenanceUnavailable(f"it cannot be read back: {one_line(error)}", "check the authority") from error
    codes = {str(status.get("code")) for kind in ("success", "informational", "failure") for status in results.get(kind) or ()}
    if "timeStamp.validated" not in codes or codes & {"timeStamp.mismatch", "timeStamp.malformed", "timeStamp.outsideValidity"}:
        raise ProvenanceUnavailable("it is no valid stamp of this signature", "check the authority")
    if rule.anchors and "timeStamp.trusted" not in codes:
        raise ProvenanceUnavailable("it is of an authority that is not trusted here", "put its root into trust/tsa of the state folder")
    return replace(signed, timestamp="trusted" if rule.anchors else "unverified")
