"""Verifies files against stored checksums in a background thread, so that a run need not wait for it."""

import collections
import threading
import zlib
from pathlib import Path

from optiml_jax.common.errors import DataError

READ_BYTES = 16 << 20
CACHE_AGAIN = "remove its folder and cache the mixture again"


def crc32(path: Path) -> tuple[int, str]:
    """Size and CRC-32 of a file: one to three gigabytes per second from the page cache."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return size, f"{checksum:08x}"


class Checker:
    """Compares files with their checksums, one at a time in the order of `add`, in a background thread."""

    def __init__(self) -> None:
        self._waiting: collections.deque[tuple[Path, str]] = collections.deque()
        self._changed = threading.Condition()
        self._running = False
        self._fault: str | None = None

    def add(self, path: Path, checksum: str) -> None:
        """Queues a file for comparison."""
        with self._changed:
            self._waiting.append((path, checksum))
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="checksums", daemon=True).start()

    def raise_fault(self) -> None:
        """Raises the first mismatch found so far.

        Raises:
          DataError: names a file that differs from its checksum.
        """
        if self._fault is not None:
            raise DataError(self._fault)

    def wait(self) -> None:
        """Waits until every queued file is compared; raises as `raise_fault`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
        self.raise_fault()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._fault is not None:
                    self._waiting.clear()
                    self._running = False
                    self._changed.notify_all()
                    return
                path, checksum = self._waiting.popleft()
            try:
                actual = crc32(path)[1]
                if actual != checksum:
                    self._fault = f"{path}: damaged (checksum {actual}, expected {checksum}); {CACHE_AGAIN}"
            except OSError as error:
                self._fault = f"{path}: cannot be read ({error.strerror}); {CACHE_AGAIN}"
