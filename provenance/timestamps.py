"""RFC 3161 time stamps within a budget. The C2PA library asks a time-stamp authority by itself, and waits 30 s for one that hangs; so it is
pointed at a relay on this machine that passes the query on, keeps to the budget and remembers what went wrong.

Knows nothing of certificates or claims: whether a stamp is trusted is read from the signed file.
"""

from __future__ import annotations

import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from platemark.errors import InputError

BUDGET_SECONDS = 5.0
_MAX_BODY = 64 * 1024  # bytes of a query or an answer; real ones have a few hundred to 8 Ki
_QUERY, _REPLY = "application/timestamp-query", "application/timestamp-reply"


@dataclass(frozen=True)
class TimestampRule:
    """Whether a signature gets a time stamp: `off`; `try` (signed without one where that fails); `required` (nothing is signed then).

    `anchors`: PEM certificates of the authorities that count; without any, a stamp is taken from whoever answers at `url`.
    """

    mode: Literal["off", "try", "required"] = "off"
    url: str | None = None
    anchors: bytes = b""
    budget_seconds: float = BUDGET_SECONDS

    def __post_init__(self) -> None:
        if self.mode == "off":
            return
        parts = urlsplit(self.url or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                "time stamps need the address of an authority (http or https)", "give its URL (in a policy: provenance.timestamp_url)"
            )
        if not 0 < self.budget_seconds <= 60:
            raise InputError("the time for a time stamp is out of range", "use more than 0 and at most 60 seconds")


NO_TIMESTAMP = TimestampRule()


class Relay:
    """Where the library sends its query (`url`), and why there was no answer (`failure`, or None)."""

    def __init__(self, rule: TimestampRule) -> None:
        self.rule = rule
        self.path = f"/{secrets.token_hex(16)}"
        self.port = 0
        self.failure: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def answer(self, query: bytes) -> bytes | None:
        """The authority's answer within the budget, whatever it does meanwhile: the asking thread is left behind where it hangs."""
        got: list[bytes | str] = []
        asking = threading.Thread(target=lambda: got.append(_ask(str(self.rule.url), query, self.rule.budget_seconds)), daemon=True)
        asking.start()
        asking.join(self.rule.budget_seconds)
        found = got[0] if got else f"it did not answer within {self.rule.budget_seconds:g} s"
        if isinstance(found, bytes):
            return found
        self.failure = f"the time-stamp authority gave no stamp: {found}"
        return None


@contextmanager
def relayed(rule: TimestampRule) -> Iterator[Relay]:
    """A relay for one signature, on a loopback port of its own."""
    relay = Relay(rule)

    class Handler(_Handler):
        to = relay

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        relay.port = server.server_address[1]
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        serving.start()
        try:
            yield relay
        finally:
            server.shutdown()
            serving.join()


class _Handler(BaseHTTPRequestHandler):
    to: Relay

    def do_POST(self) -> None:  # the name that http.server calls
        length = self.headers.get("Content-Length", "")
        if self.path != self.to.path or not length.isdecimal() or int(length) > _MAX_BODY:
            self.send_error(400)
            return
        answer = self.to.answer(self.rfile.read(int(length)))
        if answer is None:
            self.send_error(504)
            return
        self.send_response(200)
        self.send_header("Content-Type", _REPLY)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a library does not write to standard error."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _ask(url: str, query: bytes, seconds: float) -> bytes | str:
    """The authority's answer, or why there is none."""
    request = urllib.request.Request(url, query, {"Content-Type": _QUERY, "Accept": _REPLY})
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds) as response:
            answer: bytes = response.read(_MAX_BODY + 1)
    except urllib.error.HTTPError as error:
        return f"it answered with status {error.code}"
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        return f"it cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"
    except (OSError, HTTPException, ValueError):
        return "its answer is not HTTP"
    return answer if 0 < len(answer) <= _MAX_BODY else "its answer is empty or too long"
