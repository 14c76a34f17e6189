"""Files against the checksums that their writer left, in a background thread: a run need not wait, and is stopped."""

import collections
import threading
import zlib
from pathlib import Path

from optiml_jax.common.errors import DataError

CHUNK = 16 << 20
CACHE_AGAIN = "remove the task's folder and cache it again"


def crc32(path: Path) -> tuple[int, str]:
    """Size and checksum of a file, at one to three gigabytes a second once it is in memory."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return size, f"{checksum:08x}"


class Checker:
    """Compares files with their checksums in the order given, one after the other, beside whatever else runs."""

    def __init__(self) -> None:
        self._waiting: collections.deque[tuple[Path, str]] = collections.deque()
        self._changed = threading.Condition()
        self._running = False
        self._fault: str | None = None

    def add(self, path: Path, checksum: str) -> None:
        """Asks for a file to be compared."""
        with self._changed:
            self._waiting.append((path, checksum))
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="checksums", daemon=True).start()

    def raise_fault(self) -> None:
        """Raises what was found so far.

        Raises:
          DataError: names a file that is not as it was written.
        """
        if self._fault is not None:
            raise DataError(self._fault)

    def wait(self) -> None:
        """Until every file asked for is compared; raises as `raise_fault`."""
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
                found = crc32(path)[1]
                if found != checksum:
                    self._fault = f"{path}: not as it was written (checksum {found}, not {checksum}); {CACHE_AGAIN}"
            except OSError as error:
                self._fault = f"{path}: cannot be read ({error.strerror}); {CACHE_AGAIN}"
