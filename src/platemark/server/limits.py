"""Limits of a public service, in memory: request rate by client, size and duration of bodies, work at once. Knows no route."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from platemark.errors import PlatemarkError

if TYPE_CHECKING:
    from starlette.requests import Request

_MAX_CLIENTS = 20_000  # remembered at once; who is forgotten has a full bucket again


@dataclass(frozen=True)
class Limits:
    """`per_minute`: cheap requests of one client (address, or /64 network); looking into a picture costs `content_cost` of them.

    `max_bytes` and `max_pixels` of a picture; `body_seconds` until it must have arrived; `uploads` pictures are held in memory at a time,
    and `at_once` of them looked into.
    """

    per_minute: int = 120
    content_cost: int = 10
    max_bytes: int = 32 * 2**20
    max_pixels: int = 32 * 2**20
    body_seconds: float = 30.0
    uploads: int = 12
    at_once: int = 2


class RefusedError(PlatemarkError):
    """A request over a limit. `status` is HTTP's; `retry_after` seconds, where waiting helps."""

    code = "refused"

    def __init__(self, status: int, message: str, remedy: str, retry_after: int | None = None) -> None:
        super().__init__(message, remedy)
        self.status, self.retry_after = status, retry_after


class RateLimiter:
    """Token buckets: each client has `per_minute` tokens, which come back evenly over a minute. Safe to share between threads."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, max_clients: int = _MAX_CLIENTS) -> None:
        self._size, self._clock, self._max_clients = per_minute, clock, max_clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → (tokens, when counted)
        self._lock = threading.Lock()

    def take(self, client: str, cost: int = 1) -> None:
        """Raises `RefusedError` (429) where the client has fewer tokens than that; `retry_after` says when it will have enough."""
        cost = min(cost, self._size)
        with self._lock:
            now = self._clock()
            tokens, counted = self._buckets.pop(client, (float(self._size), now))
            tokens = min(self._size, tokens + (now - counted) * self._size / 60)
            enough = tokens >= cost
            self._buckets[client] = (tokens - cost if enough else tokens, now)
            if len(self._buckets) > self._max_clients:
                self._buckets.popitem(last=False)
        if not enough:
            wait = int((cost - tokens) * 60 / self._size) + 1
            raise RefusedError(429, "too many requests from this address", f"wait {wait} seconds", wait)


class Gate:
    """Lets `most` callers in and sends the rest away; of those inside, `at_once` pass the second door at a time."""

    def __init__(self, most: int, at_once: int) -> None:
        self._inside, self._most, self.second = 0, most, asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Raises `RefusedError` (503) where it is full."""
        if self._inside >= self._most:
            raise RefusedError(503, "too many pictures are being looked into", "try again in a few seconds", 5)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


def client_of(request: Request) -> str:
    """Whom a request counts for: the address it came from, of IPv6 the /64 network."""
    host = request.client.host if request.client else "local"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The body. Raises `RefusedError`: 413 where it is larger (already by its announced length), 408 where it takes longer."""
    too_large = RefusedError(413, f"the body is larger than {max_bytes} bytes", "send a smaller one")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {seconds:g} seconds", "try again") from None
    return b"".join(parts)
