"""One network shared by many requests: pictures join the flight between steps and leave it as they are done.

A single thread makes the network calls; every caller waits for its own pictures. What a caller's control or the network raises ends that
caller's pictures, or all that were in the failed call. Knows nothing about prompts or pictures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from platemark.errors import EngineError, PlatemarkError
from platemark.runtime.denoise import Flight, OnStep, Step, Workspace, advance, previews
from platemark.runtime.engine import Engine


@dataclass
class _Ticket:
    """One caller's flights. `error`: why they ended early."""

    flights: Sequence[Flight]
    on_step: OnStep | None
    total: int
    done: int = 0
    began: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)
    error: BaseException | None = None
    landed: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Runs a UNet for several threads at once; use as a context manager, or `close` it."""

    def __init__(self, unet: Engine, batch: int) -> None:
        """`batch`: pictures in one network call at most."""
        self._unet, self._batch = unet, batch
        self._waiting: list[_Ticket] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="platemark-batcher", daemon=True)
        self._thread.start()

    def fly(self, flights: Sequence[Flight], on_step: OnStep | None = None) -> None:
        """Brings the flights to their end, together with those of other callers. `on_step` hears this caller's steps.

        Raises `EngineError`, and what a flight's control or `on_step` raises; the other callers' pictures go on.
        """
        ticket = _Ticket(flights, on_step, max((flight.left for flight in flights), default=0))
        with self._changed:
            if self._closed:
                raise EngineError("the pipeline is closed", "open the bundle again")
            self._waiting.append(ticket)
            self._changed.notify()
        ticket.landed.wait()
        if ticket.error is not None:
            raise ticket.error

    def close(self) -> None:
        """Ends what is in flight, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        space, tickets = Workspace(), list[_Ticket]()
        while True:
            with self._changed:
                while not tickets and not self._waiting and not self._closed:
                    self._changed.wait()
                tickets += self._waiting
                self._waiting = []
                if self._closed:
                    break
            self._step(tickets, space)
            tickets = [ticket for ticket in tickets if not ticket.landed.is_set()]
        for ticket in tickets:
            _end(ticket, EngineError("the pipeline was closed", "open the bundle again"))

    def _step(self, tickets: list[_Ticket], space: Workspace) -> None:
        """One evaluation further for every picture: those that fit together in calls of at most `batch`."""
        owners: dict[tuple[object, ...], list[tuple[Flight, _Ticket]]] = {}
        for ticket in tickets:
            if _admitted(ticket):
                for flight in ticket.flights:
                    if flight.left:
                        owners.setdefault(flight.key, []).append((flight, ticket))
        for group in owners.values():
            for first in range(0, len(group), self._batch):
                self._call(group[first : first + self._batch], space)
        for ticket in tickets:
            _heard(ticket)

    def _call(self, aboard: list[tuple[Flight, _Ticket]], space: Workspace) -> None:
        aboard = [(flight, ticket) for flight, ticket in aboard if ticket.error is None]
        if not aboard:
            return
        try:
            advance(self._unet, [flight for flight, _ in aboard], space)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the callers wait for it, and it is raised again on their threads
            for _, ticket in aboard:
                _end(ticket, error)


def _admitted(ticket: _Ticket) -> bool:
    """Whether none of the caller's controls ended it."""
    try:
        for flight in ticket.flights:
            if flight.control is not None:
                flight.control.check()
    except PlatemarkError as error:
        _end(ticket, error)
        return False
    return True


def _heard(ticket: _Ticket) -> None:
    """Tells the caller of the step, and ends it where it is done."""
    if ticket.error is not None:
        return
    ticket.done += 1
    try:
        if ticket.on_step is not None and ticket.total:
            now = time.perf_counter()
            ms, elapsed = (now - ticket.last) * 1000, (now - ticket.began) * 1000
            ticket.on_step(Step(ticket.done, ticket.total, ms, elapsed, previews(ticket.flights, ticket.flights)))
            ticket.last = time.perf_counter()
    except BaseException as error:  # noqa: BLE001 - the caller's own, raised again on the caller's thread
        _end(ticket, error)
        return
    if not any(flight.left for flight in ticket.flights):
        ticket.landed.set()


def _end(ticket: _Ticket, error: BaseException) -> None:
    ticket.error = error
    ticket.landed.set()
