"""A background thread that keeps the next items of an iterator ready."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Yields the items of `make()` in order, `depth` of them prefetched; with depth 0 items are made on demand.

    An exception of the iterator is re-raised by `get` at its position in the order, and by every later call. The thread
    starts with the first `get` and ends with `close`, with the iterator, or with the process.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], depth: int) -> None:
        self._make, self._depth = make, depth
        self._iterator: Iterator[Item] | None = None
        self._queue: queue.Queue = queue.Queue(max(depth, 1))
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def get(self) -> tuple[Item, float]:
        """Returns the next item and the seconds spent waiting for it."""
        start = time.perf_counter()
        if self._closed.is_set():
            raise RuntimeError("this loader is closed")
        if self._error is not None:
            raise self._error
        item, self._error = self._produce() if self._depth == 0 else self._next_ready()
        if self._error is not None:
            raise self._error
        return item, time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread, waits for it, and lets go of the items and of what makes them."""
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            self._drain()  # a thread blocked on the full queue sees `closed` once its item is taken
            self._thread.join(timeout=0.05)
        self._drain()
        # An error refers to the frames that it went through, and these to this object.
        self._error = self._iterator = self._make = None

    def _next_ready(self) -> tuple[Item | None, BaseException | None]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="data", daemon=True)
            self._thread.start()
        return self._queue.get()

    def _run(self) -> None:
        error = None
        while error is None and not self._closed.is_set():
            item, error = self._produce()
            self._queue.put((item, error))

    def _produce(self) -> tuple[Item | None, BaseException | None]:
        try:
            if self._iterator is None:
                self._iterator = self._make()
            return next(self._iterator), None
        except BaseException as error:  # re-raised in the consumer's thread
            return None, error

    def _drain(self) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return
