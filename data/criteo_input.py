"""Criteo files as the input of a preparation: texts in order, cut into pieces that threads parse."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.archives import find_texts
from data.criteo import DENSE, DENSE_TRANSFORM, LABEL, MISSING_DENSE, SPARSE, parse
from data.errors import DataError
from data.files import io_errors
from data.lines import PIECE_BYTES, START, Lines, Mark, cut_lines, skip_text
from data.raw import Position, RawFeature, SourceFile, Task
from data.sources import expand_sources
from data.texts import Text, open_text

__all__ = ["CriteoInput", "expand_sources"]

PARSER_VERSION = 1  # another one reads other examples out of the same text


class CriteoInput:
    """Texts in Criteo's format, one after another.

    Args:
        sources: in the order of time; what `expand_sources` takes.
        labelled: whether each line begins with a label.
        piece_bytes: of text in a piece.

    Raises:
        DataError: if there is no source, or one cannot be used.
    """

    format = "criteo"
    dense = DENSE
    sparse = tuple(RawFeature(name) for name in SPARSE)
    label = LABEL
    dense_transform: Mapping[str, Any] = {"formula": DENSE_TRANSFORM, "missing": MISSING_DENSE, "type": "float16"}

    def __init__(self, sources: Sequence[str | Path], *, labelled: bool = True, piece_bytes: int = PIECE_BYTES) -> None:
        names = expand_sources(sources)
        self._texts = [text for name in names for text in find_texts(name, labelled=labelled)]
        self._labelled, self._piece_bytes = labelled, piece_bytes
        self.sources = tuple(SourceFile(text.name, text.num_bytes) for text in self._texts)

    def identity(self) -> Mapping[str, Any]:
        """Names, sizes and times of change of the sources, and how they are read."""
        files = []
        for text in self._texts:
            file: dict[str, Any] = {"name": text.name}
            if text.path is not None:
                with io_errors(text.path, "read"):
                    status = text.path.stat()
                file |= {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            files.append(file)
        reading = {"parser": PARSER_VERSION, "piece_bytes": self._piece_bytes, "labelled": self._labelled}
        return {"format": self.format, **reading, "sources": files}

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """The pieces from a position on. A text that cannot be entered in the middle is read up to there, unparsed.

        Raises:
            DataError: if a source cannot be read, or is not what it was when the position was taken.
        """
        first, start = (after["source"], _mark(after)) if after else (0, START)
        bytes_before = sum(source.num_bytes for source in self.sources[:first])
        for number in range(first, len(self._texts)):
            with open_text(self._texts[number]) as text:
                for lines in _lines_from(text, start, self._piece_bytes):
                    position = {"source": number, "offset": lines.end.offset, "line": lines.end.line}
                    if not text.seekable:
                        position["crc32"] = lines.end.crc32
                    read = partial(parse, lines, labelled=self._labelled)
                    yield Task(number, position, bytes_before + text.bytes_read(), read)
            start = START
            bytes_before += self.sources[number].num_bytes


def _mark(position: Position) -> Mark:
    return Mark(position["offset"], position["line"], position.get("crc32", 0))


def _lines_from(text: Text, start: Mark, piece_bytes: int) -> Iterator[Lines]:
    if text.seekable:
        size = text.source.num_bytes
        if start.offset > size:
            raise DataError(
                f"{text.source.name}: {size:,} bytes, but {start.offset:,} of them were read before",
                "the file has changed: start from the beginning",
            )
        text.seek(start.offset)
    elif start.offset:
        skip_text(text, start, text.source.name)
    return cut_lines(text, start, piece_bytes, checked=not text.seekable)
