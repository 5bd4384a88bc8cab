"""Works one item ahead: while the consumer handles an item, the next one is made on another thread. Knows nothing of what is made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The items in their order, at most one made ahead and one in the making; an error comes out where its item would have.

    The source runs on one thread of its own. Where the consumer stops early, the source is closed after the item it is at, and waited for.
    """
    done: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()
    worker = threading.Thread(target=_fill, args=(iter(items), done, stop), name="platemark-ahead", daemon=True)
    worker.start()
    try:
        while (found := done.get()) is not _END:
            if isinstance(found, _Failed):
                raise found.error
            yield found
    finally:
        stop.set()
        while worker.is_alive():  # makes room, so that the worker can end
            try:
                done.get(timeout=0.05)
            except queue.Empty:
                continue
        worker.join()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fill(items: Any, done: queue.Queue[Any], stop: threading.Event) -> None:
    source = items if hasattr(items, "close") else closing_iterator(items)
    with closing(source):
        try:
            for item in source:
                done.put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - carried to the consumer's thread and raised there
            done.put(_Failed(error))
            return
    done.put(_END)


def closing_iterator(items: Iterable[T]) -> Generator[T, None, None]:
    """A generator over any iterable, so that it can be closed."""
    yield from items
