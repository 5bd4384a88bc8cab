"""The one error tree. Every error knows what went wrong (one line), its code, its remedy, and the exit code of the CLI.

PlatemarkError                     1
├── InputError                     2   a request, option or file that cannot be used
│   ├── ImageError                     bytes that are not a usable image
│   │   └── DamagedImageError              a picture of a known format, damaged or cut short
│   ├── CheckpointError                a checkpoint that cannot be built from
│   ├── BundleError                    a bundle that is missing, damaged or not for this version
│   ├── PolicyError                    a policy file that is not valid
│   └── MissingExtra                   an optional dependency is not installed
├── Cancelled                      1   the caller ended the request
├── DeadlineExceeded               1   the request ran out of its time
├── PolicyBlocked                  3   the policy refuses the request; carries the decision
├── SafetyUnavailable              4   a check could not run, so nothing is released
├── ProvenanceUnavailable          4   a mark, signature or record could not be made, so nothing is released
└── EngineError                    5   an engine failed, or its output cannot be right
    ├── RenderError                    NaN, flat or black output
    └── ParityError                    an engine does not compute what its reference computes
"""

from __future__ import annotations

from typing import Any, ClassVar


class PlatemarkError(Exception):
    """Base of every error that Platemark raises on purpose.

    `message` is one line and never holds a secret or a prompt; `remedy` says what the user can do about it.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def as_dict(self) -> dict[str, Any]:
        """`{"code", "message", "remedy"}`: what `--json` and HTTP answers show."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})"


class InputError(PlatemarkError):
    exit_code = 2
    code = "bad_input"


class ImageError(InputError):
    code = "bad_image"


class DamagedImageError(ImageError):
    """A picture of a known format, by its first bytes, that is damaged or cut short."""

    code = "damaged_image"


class CheckpointError(InputError):
    code = "bad_checkpoint"


class BundleError(InputError):
    code = "bad_bundle"


class PolicyError(InputError):
    code = "bad_policy"


class MissingExtra(InputError):
    """An optional dependency is needed: names the pip command that brings it."""

    code = "missing_extra"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'", f'in the clone: pip install -c constraints.txt ".[{extra}]"')
        self.extra = extra


class Cancelled(PlatemarkError):
    code = "cancelled"


class DeadlineExceeded(PlatemarkError):
    code = "deadline_exceeded"


class PolicyBlocked(PlatemarkError):
    """The policy refuses the request. `decision` is the safety decision (data, without the prompt)."""

    exit_code = 3
    code = "blocked"

    def __init__(self, message: str, remedy: str, decision: Any = None) -> None:
        super().__init__(message, remedy)
        self.decision = decision


class SafetyUnavailable(PlatemarkError):
    exit_code = 4
    code = "safety_unavailable"


class ProvenanceUnavailable(PlatemarkError):
    exit_code = 4
    code = "provenance_unavailable"


class EngineError(PlatemarkError):
    exit_code = 5
    code = "engine_error"


class RenderError(EngineError):
    code = "render_error"


class ParityError(EngineError):
    code = "parity_error"
