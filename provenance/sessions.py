"""What the C2PA library needs to sign: a context and a signer. Kept for a thread's next signature where that is safe. Knows no manifest.

Both die in a forked child ("Context is not valid") and are not for two threads, so what is kept is kept by process and thread; it saves a
fifth of the time of a signature. Callbacks and time stamps, which belong to one signature, get their own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from platemark.provenance.c2pa_context import signing_context
from platemark.provenance.callbacks import Guarded
from platemark.provenance.identity import Identity

if TYPE_CHECKING:
    from c2pa import Context, Signer  # type: ignore[import-untyped]

_Key = tuple[int, str, bytes, bytes]


class _Kept(threading.local):
    """This thread's session, and for whom it is: process id, algorithm, chain, private key."""

    key: _Key | None = None
    session: tuple[Context, Signer] | None = None


_kept = _Kept()


@contextmanager
def session(identity: Identity, guard: Guarded | None, timestamp_url: str | None) -> Iterator[tuple[Context, Signer]]:
    """A context and a signer for one signature. `timestamp_url`: on the loopback address, or None. Raises the library's errors."""
    if guard is not None or timestamp_url is not None:
        with ExitStack() as stack:
            context = stack.enter_context(signing_context(relay=timestamp_url is not None))
            yield context, stack.enter_context(_signer(identity, guard, timestamp_url))
        return
    key = (os.getpid(), identity.algorithm, identity.chain_pem, identity.private_key_pem)
    if _kept.session is None or _kept.key != key:
        _kept.key, _kept.session = None, None
        _kept.session = (signing_context(relay=False), _signer(identity, None, None))
        _kept.key = key
    kept = _kept.session
    try:
        yield kept
    except BaseException:
        _kept.key, _kept.session = None, None  # whatever state it was left in
        raise


def _signer(identity: Identity, guard: Guarded | None, timestamp_url: str | None) -> Signer:
    import c2pa

    if guard is None:
        info = c2pa.C2paSignerInfo(identity.algorithm, identity.chain_pem, identity.private_key_pem, timestamp_url)
        return c2pa.Signer.from_info(info)
    algorithm = c2pa.C2paSigningAlg[identity.algorithm.upper()]
    return c2pa.Signer.from_callback(guard, algorithm, identity.chain_pem.decode("ascii"), timestamp_url)
