"""What a request gives back: a picture, the decision that withheld it, or the error that kept it from being one. Makes none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from platemark.errors import InputError, PlatemarkError, PolicyBlocked, RenderError
from platemark.provenance.files import write_atomically
from platemark.provenance.record import ProvenanceRecord
from platemark.safety.decision import Decision

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # suffix → format


@dataclass(frozen=True)
class Result:
    """One picture of a request, or why there is none.

    `data` holds the stamped file (marked, signed, recorded); `image` the same pixels as a PIL image. Both are None where `decision`
    withheld the picture, and where it did not come out as one: then `error` says so (`render_error`) and there is no decision, since a
    broken render is not an unsafe picture. `timings` are milliseconds by stage; `notes` say, in sentences, what of the request could not
    be used or checked. `request_id` finds the request in the audit log. The guarantee is about `data`: an image saved anew from `image`
    keeps the watermark but not the signature.
    """

    image: Image | None
    data: bytes | None
    file_format: str
    seed: int
    decision: Decision | None
    provenance: ProvenanceRecord | None
    timings: dict[str, float]
    notes: tuple[str, ...] = ()
    error: PlatemarkError | None = None
    request_id: str = ""

    @property
    def status(self) -> Literal["released", "withheld", "render_error"]:
        """What became of the picture."""
        if self.data is not None:
            return "released"
        return "withheld" if self.error is None else "render_error"

    def save(self, path: str | Path) -> None:
        """Writes the stamped file: whole or not at all.

        Raises `PolicyBlocked` or `RenderError` where there is none, and `InputError` where the path's suffix names another format.
        """
        if self.error is not None:
            raise RenderError(self.error.message, self.error.remedy)
        if self.data is None:
            raise PolicyBlocked("the policy withheld this picture", "read `decision.reasons`; nothing was written", self.decision)
        if FORMATS.get(Path(path).suffix.lower()) != self.file_format:
            raise InputError(
                f"the picture is a {self.file_format.upper()} file, and {Path(path).name!r} says otherwise",
                f"save it with another suffix, or generate with file_format={FORMATS.get(Path(path).suffix.lower(), 'png')!r}",
            )
        write_atomically(Path(path), self.data)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the picture."""
        return {
            "status": self.status,
            "seed": str(self.seed),
            "decision": self.decision.as_dict() if self.decision else None,
            "error": self.error.as_dict() if self.error else None,
            "provenance": self.provenance.as_dict() if self.provenance else None,
            "timings": self.timings,
            "notes": list(self.notes),
            "request_id": self.request_id,
        }
