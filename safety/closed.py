"""Fail closed: whatever a detector does wrong becomes `SafetyUnavailable`. Knows no detector."""

from __future__ import annotations

from types import TracebackType

from platemark.errors import PlatemarkError, SafetyUnavailable

REMEDY = "nothing was released; run `platemark doctor`, and rebuild the bundle if it persists"


class fail_closed:  # noqa: N801 - reads as a statement: `with fail_closed("clip"):`
    """Turns any error raised inside the block into `SafetyUnavailable`, which names the check and the kind of error.

    A foreign error's own text stays out of the message: a detector may quote the prompt in it. Interrupts and exits pass through.
    """

    def __init__(self, check: str) -> None:
        self.check = check

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A detector is foreign code and may raise anything; an error that is not turned into a refusal here could be taken for a bug
        # of the request and be retried without the check.
        if isinstance(error, Exception) and not isinstance(error, SafetyUnavailable):
            cause = error.message if isinstance(error, PlatemarkError) else type(error).__name__
            raise SafetyUnavailable(f"the check '{self.check}' failed: {cause}", REMEDY) from error


def require(holds: bool, what: str) -> None:
    """Raises `SafetyUnavailable` naming `what` unless `holds`."""
    if not holds:
        raise SafetyUnavailable(what, REMEDY)
