"""Criteo files as the input of a preparation: sources in order, cut into pieces that threads parse."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.criteo import DENSE, DENSE_TRANSFORM, LABEL, MISSING_DENSE, SPARSE, parse
from data.errors import DataError
from data.lines import PIECE_BYTES, check_source, read_lines
from data.raw import Position, RawFeature, SourceFile, Task

PARSER_VERSION = 1  # another one reads other examples out of the same text


def expand_sources(sources: Sequence[str | Path]) -> list[str]:
    """The names that patterns stand for."""
    return [str(source) for source in sources]


class CriteoInput:
    """Files in Criteo's format, one after another.

    Args:
        sources: paths, in the order of time.
        piece_bytes: of text in a piece.

    Raises:
        DataError: if there is no source, or one cannot be used.
    """

    format = "criteo"
    dense = DENSE
    sparse = tuple(RawFeature(name) for name in SPARSE)
    label = LABEL
    dense_transform: Mapping[str, Any] = {"formula": DENSE_TRANSFORM, "missing": MISSING_DENSE, "type": "float16"}

    def __init__(self, sources: Sequence[str | Path], *, piece_bytes: int = PIECE_BYTES) -> None:
        self._paths = [Path(source) for source in expand_sources(sources)]
        if not self._paths:
            raise DataError("no file to prepare")
        self._piece_bytes = piece_bytes
        self.sources = tuple(SourceFile(path.name, check_source(path)) for path in self._paths)

    def identity(self) -> Mapping[str, Any]:
        """Names, sizes and times of change of the sources, and how they are read."""
        files = [
            {"name": str(path), "bytes": file.num_bytes, "mtime_ns": path.stat().st_mtime_ns}
            for path, file in zip(self._paths, self.sources, strict=True)
        ]
        return {"format": self.format, "parser": PARSER_VERSION, "piece_bytes": self._piece_bytes, "sources": files}

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """The pieces from a position on.

        Raises:
            DataError: if a source cannot be read.
        """
        skip_source, skip_line = (after["source"], after["line"]) if after else (0, 1)
        bytes_before = 0
        for number, (path, source) in enumerate(zip(self._paths, self.sources, strict=True)):
            if number >= skip_source:
                for lines in read_lines(path, self._piece_bytes):
                    line = lines.first + lines.content.count(b"\n")
                    if number > skip_source or line > skip_line:
                        position = {"source": number, "line": line}
                        yield Task(number, position, bytes_before + lines.position, partial(parse, lines))
            bytes_before += source.num_bytes
