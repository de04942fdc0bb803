"""Local copies of remote tables, whose readers need files."""

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlrmctl.data.remote.files import RANGE_BYTES, RemoteFile

_SPOOLED_FILES = 4  # unused local copies


class _Copies:
    """Local copies of remote tables, whose readers need files: first only the end, which describes the columns."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._used: OrderedDict[RemoteFile, int] = OrderedDict()
        self._whole: set[RemoteFile] = set()
        self._places: dict[RemoteFile, Path] = {}
        self._filling: dict[RemoteFile, threading.Lock] = {}

    @contextmanager
    def of(self, file: RemoteFile, *, whole: bool) -> Iterator[Path]:
        with self._lock:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="dlrmctl-")
            place = self._places.setdefault(file, Path(self._directory.name) / f"{len(self._places)}")
            filling = self._filling.setdefault(file, threading.Lock())
            self._used[file] = self._used.get(file, 0) + 1
            self._used.move_to_end(file)
        try:
            with filling:
                if whole and file not in self._whole:
                    _download(file, place, 0)
                    self._whole.add(file)
                elif not place.exists():
                    _download(file, place, _footer_at(file))
            yield place
        finally:
            with self._lock:
                self._used[file] -= 1
                unused = [old for old, uses in self._used.items() if not uses and old in self._whole]
                for old in unused[: max(len(self._whole) - _SPOOLED_FILES, 0)]:
                    self._places[old].unlink(missing_ok=True)
                    self._whole.discard(old)


def _footer_at(file: RemoteFile) -> int:
    """Where the description at the end of a Parquet or Arrow file begins; both end with its length and a mark."""
    with file.open() as stream:
        stream.seek(max(file.size - 10, 0))
        end = stream.read(10)
    length = int.from_bytes(end[2:6], "little") + 8 if end.endswith(b"PAR1") else int.from_bytes(end[:4], "little") + 10
    return max(file.size - length, 0)


def _download(file: RemoteFile, place: Path, start: int) -> None:
    """Writes the bytes from `start` on to a file as long as the whole; before them are a few and then zeros."""
    with file.open() as stream, place.open("wb") as target:
        target.truncate(file.size)
        target.write(stream.read(min(16, file.size)))
        stream.seek(start)
        target.seek(start)
        while piece := stream.read(RANGE_BYTES):
            target.write(piece)


_copies = _Copies()


@contextmanager
def local_copy(path: Path | RemoteFile, *, whole: bool) -> Iterator[Path]:
    """Context manager for a file on this machine with the content of another.

    Args:
        path: a local file is its own copy.
        whole: False if only the end of a Parquet or Arrow file is needed.
    """
    if isinstance(path, Path):
        yield path
    else:
        with _copies.of(path, whole=whole) as place:
            yield place
