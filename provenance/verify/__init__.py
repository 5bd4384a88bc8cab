"""The verifier: reads credentials, watermark, metadata and registry, and gives one verdict with what each layer said.

Three axes are kept apart: integrity, trust and recovery; `judge` says how the verdict follows. Nothing is fetched from a network and
nothing is written. Knows nothing of how the layers are stored or encoded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from platemark.imaging import read_bytes
from platemark.provenance.home import home as default_home
from platemark.provenance.trust import TrustLists, held_trust
from platemark.provenance.verify.evidence import Question, credential_layer, gather
from platemark.provenance.verify.judge import axes, exit_code, judge
from platemark.provenance.verify.profiles import apply_profile
from platemark.provenance.verify.report import VERDICTS, Verdict, VerifyReport, plain
from platemark.provenance.verify.summary import summarize

__all__ = ["VERDICTS", "Verdict", "VerifyReport", "exit_code", "verify"]
_MAX_MANIFEST = 64 << 20


def verify(
    source: bytes | str | Path,
    *,
    home: str | Path | None = None,
    deep: bool = True,
    trust: TrustLists | None = None,
    manifest: bytes | str | Path | None = None,
    profile: str | None = None,
) -> VerifyReport:
    """Verifies one picture, given as bytes or a path, with the keys, trust lists and registry of the state folder `home`.

    `deep`: search the watermark in every geometry, else in the likely ones. `trust`: lists beside those of the state folder. `manifest`: a
    C2PA store kept apart (for a path, `NAME.c2pa` or `NAME.EXT.c2pa` beside it is found by itself). `profile`: one of
    `profiles.names()`: which fields of that regime are present.
    Raises `InputError` (unreadable path, unknown profile), `ImageError` (no picture of a known format, too big, or a decompression bomb),
    `ProvenanceUnavailable` (a key file or trust list of the state folder is damaged). A picture that is damaged is a verdict, not an error.
    """
    data, state = read_bytes(source), default_home(home)
    lists = held_trust(state)
    question = Question(
        data=data,
        home=state,
        trust=lists.plus(trust) if trust else lists,
        deep=deep,
        manifest=read_bytes(manifest, max_bytes=_MAX_MANIFEST) if manifest is not None else _beside(source),
    )
    evidence = gather(question)
    verdict, known = judge(evidence), evidence.marked or evidence.bound
    report = VerifyReport(
        verdict=verdict,
        axes=axes(evidence),
        content_id=known.content_id if known else None,
        issuer=known.issuer if known else None,
        sha256=hashlib.sha256(data).hexdigest(),
        summary=plain(summarize(verdict, evidence)),
        layers={
            "c2pa": credential_layer(evidence),
            "watermark": evidence.watermark,
            "metadata": evidence.metadata,
            "registry": plain(evidence.registry),
        },
    )
    return report if profile is None else report.model_copy(update={"profile": apply_profile(profile, report)})


def _beside(source: bytes | str | Path) -> bytes | None:
    """The manifest store that lies beside a picture's path, if there is one."""
    if isinstance(source, bytes | bytearray | memoryview):
        return None
    path = Path(source)
    own, shared = path.with_name(path.name + ".c2pa"), path.with_suffix(".c2pa")
    for candidate in (own,) if _has_namesake(path) else (own, shared):
        if candidate != path and candidate.is_file():
            return read_bytes(candidate, max_bytes=_MAX_MANIFEST)
    return None


def _has_namesake(path: Path) -> bool:
    """Whether another picture beside it has the same name but for its suffix: `NAME.c2pa` then says of neither which it is for."""
    from platemark.provenance.verify.batch import PICTURES

    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return False
    return any(Path(name).stem == path.stem and Path(name).suffix.lower() in PICTURES for name in names if name != path.name)
