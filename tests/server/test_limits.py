"""Limits: who asks too often waits, who sends too much is cut off, and nobody's memory grows without end."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from platemark.server.limits import Gate, RateLimiter, RefusedError, client_of, read_body


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tokens_are_used_up_and_come_back_evenly() -> None:
    clock = Clock()
    limiter = RateLimiter(60, clock=clock)
    for _ in range(60):
        limiter.take("a")
    with pytest.raises(RefusedError) as caught:
        limiter.take("a")
    assert (caught.value.status, caught.value.retry_after) == (429, 2)
    limiter.take("b")
    clock.now += 1.0
    limiter.take("a")
    with pytest.raises(RefusedError):
        limiter.take("a")
    clock.now += 3600
    for _ in range(60):
        limiter.take("a")
    with pytest.raises(RefusedError):
        limiter.take("a")


def test_dear_requests_take_more_and_always_can_be_had() -> None:
    clock = Clock()
    limiter = RateLimiter(15, clock=clock)
    limiter.take("a", 10)
    with pytest.raises(RefusedError) as caught:
        limiter.take("a", 10)
    assert caught.value.retry_after == 21
    clock.now += 21
    limiter.take("a", 10)
    clock.now += 60
    limiter.take("a", 1000)


def test_the_memory_of_clients_is_bounded() -> None:
    limiter = RateLimiter(1, clock=Clock(), max_clients=3)
    for client in "abcd":
        limiter.take(client)
    assert list(limiter._buckets) == ["b", "c", "d"]
    limiter.take("a")  # was forgotten
    with pytest.raises(RefusedError):
        limiter.take("d")


@pytest.mark.parametrize(
    ("address", "client"),
    [("10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("testclient", "testclient"), (None, "local")],
)
def test_whom_a_request_counts_for(address: str | None, client: str) -> None:
    scope = {"type": "http", "headers": [], "client": address and (address, 1234)}
    assert client_of(Request(scope)) == client


def request_of(parts: list[bytes], *, announced: int | None = None, pause: float = 0.0) -> tuple[Request, list[int]]:
    """A request whose body arrives in parts; the list counts how many were taken."""
    taken: list[int] = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(pause)
        taken.append(1)
        return {"type": "http.request", "body": parts[len(taken) - 1], "more_body": len(taken) < len(parts)}

    headers = [] if announced is None else [(b"content-length", str(announced).encode())]
    return Request({"type": "http", "headers": headers}, receive), taken


def test_bodies_are_bounded_in_size_and_time() -> None:
    request, _ = request_of([b"ab", b"", b"cd"])
    assert asyncio.run(read_body(request, 4, 1)) == b"abcd"
    request, taken = request_of([b"a" * 10] * 100)
    with pytest.raises(RefusedError) as caught:
        asyncio.run(read_body(request, 25, 1))
    assert caught.value.status == 413
    assert len(taken) == 3  # the rest was never read
    request, taken = request_of([b"a"], announced=26)
    with pytest.raises(RefusedError):
        asyncio.run(read_body(request, 25, 1))
    assert taken == []
    request, _ = request_of([b"a"] * 100, pause=0.05)
    with pytest.raises(RefusedError) as caught:
        asyncio.run(read_body(request, 1000, 0.1))
    assert caught.value.status == 408


def test_the_gate_sends_away_who_does_not_fit() -> None:
    async def crowd() -> list[str]:
        gate, outcome = Gate(3, 1), []

        async def visitor() -> None:
            try:
                async with gate.enter(), gate.second:
                    await asyncio.sleep(0.01)
                    outcome.append("in")
            except RefusedError as error:
                outcome.append(str(error.status))

        await asyncio.gather(*(visitor() for _ in range(5)))
        await visitor()
        return outcome

    assert sorted(asyncio.run(crowd())) == ["503", "503", "in", "in", "in", "in"]
