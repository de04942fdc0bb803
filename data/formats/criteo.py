"""Criteo's text format: label, 13 integers, 26 categoricals of up to 8 hexadecimal digits, separated by tabs.

`CriteoInput` takes texts in order and cuts them into pieces; `parse` makes rows and bad lines of a piece.
N good rows, I = 13 dense features, F = 26 sparse features.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.criteo_digits import MAX_DIGITS, read_fields, read_integer
from dlrmctl.data.formats.lines import MAX_LINE_BYTES, PIECE_BYTES, START, Lines, Mark, cut_lines, skip_text
from dlrmctl.data.formats.raw import (
    LABEL_NOT_BINARY,
    BadLine,
    KeptColumns,
    Position,
    RawColumn,
    RawFeature,
    RawPiece,
    SourceFile,
    Task,
)
from dlrmctl.data.formats.sources import expand_sources
from dlrmctl.data.formats.texts import Text, TextSource, find_texts, is_regular, open_text
from dlrmctl.data.formats.transforms import LOG, MISSING, DenseTransform
from dlrmctl.data.remote.files import RemoteFile, file_identity

LABEL = "label"
DENSE = tuple(f"int_{i}" for i in range(1, 14))
SPARSE = tuple(f"cat_{f}" for f in range(1, 27))
LOST_FIELDS = "lost empty fields at the end"  # a reason to repair a line
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_SHOWN = 40  # characters of a wrong value
_HEAD_BYTES, _HEAD_LINES = 1 << 16, 5
_TAB, _NEWLINE = ord("\t"), ord("\n")
_RAW_PIECE_BYTES = 1 << 19  # some thousand rows
PARSER_VERSION = 1  # changes if the same text gives other examples


def parse(lines: Lines, *, labelled: bool = True) -> RawPiece:
    """Parses every line as a row or as a bad line.

    A line with fewer fields, whose last field is a categorical of 8 digits, is repaired if its fields parse in their
    places: it can only have lost empty fields at its end, which text tools strip. A last line without newline may be
    truncated: it is kept if it ends with such a categorical in its 26th place, and never repaired.

    Args:
        lines: from `cut_lines`.
        labelled: whether the first field is a label.
    """
    names = (LABEL, *DENSE, *SPARSE) if labelled else (*DENSE, *SPARSE)
    content = lines.content.replace(b"\r\n", b"\n") if b"\r" in lines.content else lines.content
    fields = read_fields(content, len(names), len(DENSE), labelled=labelled) if lines.ended else None
    numbers = lines.first + np.arange(content.count(b"\n"))
    repaired: dict[int, BadLine] = {}
    bad: list[BadLine] = []
    if fields is None:
        content, numbers, repaired, bad = _well_formed(content, lines, len(names))
        fields = read_fields(content, len(names), len(DENSE), labelled=labelled)
        assert fields is not None, "every line has all fields"
    if fields.wrong_N.any():
        text = content.split(b"\n")
        for row in np.flatnonzero(fields.wrong_N).tolist():
            number = int(numbers[row])
            problem = repaired.pop(number, None) or _wrong_value(number, text[row], names)
            assert problem is not None, "two ways of reading a field say the same"
            bad.append(problem)
        numbers, fields = numbers[~fields.wrong_N], fields.right()
    return RawPiece(
        lines_N=numbers,
        labels_N=fields.labels_N,
        dense_IN=fields.dense_IN,
        sparse=[RawColumn(*column) for column in zip(fields.values_FN, fields.present_FN, strict=True)],
        repaired={LOST_FIELDS: len(repaired)} if repaired else {},
        bad=sorted(bad, key=lambda line: line.line),
    )


def _parse_with_fields(lines: Lines, *, labelled: bool = True) -> RawPiece:
    """As `parse`, with the fields of good rows; empty ones are missing."""
    piece = parse(lines, labelled=labelled)
    names = (LABEL, *DENSE, *SPARSE) if labelled else (*DENSE, *SPARSE)
    texts = lines.content.decode(errors="replace").split("\n")
    rows = [texts[line - lines.first].removesuffix("\r").split("\t") for line in piece.lines_N.tolist()]
    columns = zip(*(fields + [""] * (len(names) - len(fields)) for fields in rows), strict=True)
    frame = pl.DataFrame(dict(zip(names, columns, strict=True)) if rows else {}, dict.fromkeys(names, pl.String))
    return replace(piece, kept=KeptColumns(piece.lines_N, frame))


def _well_formed(
    content: bytes, lines: Lines, num_fields: int
) -> tuple[bytes, np.ndarray, dict[int, BadLine], list[BadLine]]:
    """Selects the lines with the right number of fields, including repaired ones, and their numbers.

    Returns:
        Text and line numbers (int64) of these; the problem of each repaired one; and the bad lines.
    """
    content_bytes = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(content_bytes == _NEWLINE)
    starts = np.concatenate(([0], ends[:-1] + 1))
    tabs = np.add.reduceat(content_bytes == _TAB, starts, dtype=np.int64)
    doubtful = (tabs != num_fields - 1) | (ends - starts > MAX_LINE_BYTES)
    doubtful[-1] |= not lines.ended
    keep = np.ones(len(ends), dtype=bool)
    repaired: dict[int, BadLine] = {}
    bad, pieces, at = [], [], 0
    for index in np.flatnonzero(doubtful).tolist():
        line, number = content[starts[index] : ends[index]], lines.first + index
        whole = lines.ended or index < len(ends) - 1
        problem = _line_problem(number, line, int(tabs[index]) + 1, num_fields, whole=whole)
        if problem is None:
            continue
        pieces.append(content[at : starts[index]])
        at = ends[index] + 1
        if whole and problem.extra_fields and _lost_empty_fields(line, num_fields):
            repaired[number] = problem
            pieces.append(line + b"\t" * (num_fields - 1 - int(tabs[index])) + b"\n")
        else:
            keep[index] = False
            bad.append(problem)
    text = b"".join([*pieces, content[at:]]) if pieces else content
    return text, lines.first + np.flatnonzero(keep), repaired, bad


def _line_problem(number: int, line: bytes, fields: int, num_fields: int, *, whole: bool) -> BadLine | None:
    problem = _not_text(number, line)
    if problem is not None:
        return problem
    if fields != num_fields:
        return BadLine.of_fields(number, fields, num_fields)
    if not whole and not _is_full_value(line.rsplit(b"\t", 1)[-1]):
        return BadLine(number, "cut short", "the last line has no newline and may be cut short")
    return None


def _not_text(number: int, line: bytes) -> BadLine | None:
    if len(line) > MAX_LINE_BYTES:
        return BadLine(number, "too long", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    if not line.strip():
        return BadLine(number, "blank", "the line is blank")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line, {line[error.start]:#04x}"
        return BadLine(number, "not UTF-8", f"{where}, is not UTF-8")
    return None


def _is_full_value(field: bytes) -> bool:
    """Returns whether the field is a categorical as Criteo writes it, with leading zeros."""
    return len(field) == MAX_DIGITS and _HEX_DIGITS.issuperset(field)


def _lost_empty_fields(line: bytes, num_fields: int) -> bool:
    fields = line.split(b"\t")
    return num_fields - len(SPARSE) < len(fields) < num_fields and _is_full_value(fields[-1])


def _wrong_value(number: int, line: bytes, names: tuple[str, ...]) -> BadLine | None:
    """Describes what is wrong with a line that has the right number of fields: its first wrong field, if it is text."""
    problem = _not_text(number, line) if line.strip() else None
    for name, field in zip(names, line.split(b"\t"), strict=True):
        if problem is not None:
            break
        problem = _wrong_field(number, name, field)
    return problem


def _wrong_field(number: int, name: str, field: bytes) -> BadLine | None:
    text = field.decode()
    shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    if name == LABEL and text not in ("0", "1"):
        problem = f"the label is {shown}, expected 0 or 1" if text else "the label is missing"
        return BadLine(number, LABEL_NOT_BINARY, problem)
    if name in DENSE and field and read_integer(field) is None:
        return BadLine(number, "not an integer", f"{name} is {shown}, expected an integer")
    if name in SPARSE and not (len(field) <= MAX_DIGITS and _HEX_DIGITS.issuperset(field)):
        expected = f"at most {MAX_DIGITS} hexadecimal digits"
        return BadLine(number, "not hexadecimal", f"{name} is {shown}, expected {expected}")
    return None


class CriteoInput:
    """Texts in Criteo's format.

    Args:
        sources: in the order of time, as for `expand_sources`.
        labelled: whether each line begins with a label.
        piece_bytes: bytes of text in a piece.

    Raises:
        DataError: if there is no source, or one cannot be used.
    """

    format = "criteo"
    dense = DENSE
    dense_type = np.dtype(np.float16)
    sparse = tuple(RawFeature(name) for name in SPARSE)
    label = LABEL
    dense_transform = DenseTransform(MISSING, LOG.formula)
    table_schema = None
    keyed_by = None
    weight = group = None

    def __init__(self, sources: Sequence[str | Path], *, labelled: bool = True, piece_bytes: int = PIECE_BYTES) -> None:
        names = expand_sources(sources)
        self._texts = [text for name in names for text in find_texts(name, labelled=labelled)]
        self._labelled, self._piece_bytes, self._raw = labelled, piece_bytes, False
        self.sources = tuple(SourceFile(text.name, text.num_bytes) for text in self._texts)

    def identity(self) -> Mapping[str, Any]:
        """Names, sizes and modification times of the sources, and how they are read."""
        files = []
        for text in self._texts:
            file: dict[str, Any] = {"name": text.name}
            if text.path is not None:
                with io_errors(text.path, "read"):
                    file |= file_identity(text.path)
            files.append(file)
        reading = {"parser": PARSER_VERSION, "piece_bytes": self._piece_bytes, "labelled": self._labelled}
        return {"format": self.format, **reading, "sources": files}

    def with_raw(self) -> "CriteoInput | None":
        """Returns the same input, whose pieces keep the fields as strings."""
        if not all(text.path is not None and is_regular(text.path) for text in self._texts):
            return None
        again = copy(self)
        again._raw, again._piece_bytes = True, min(self._piece_bytes, _RAW_PIECE_BYTES)
        return again

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """Yields the pieces from a position on. A text without random access is read up to there, unparsed.

        Raises:
            DataError: if a source cannot be read, or was changed since the position was taken.
        """
        first, start = (after["source"], _mark(after)) if after else (0, START)
        bytes_before = sum(source.num_bytes for source in self.sources[:first])
        for number in range(first, len(self._texts)):
            with open_text(self._texts[number]) as text:
                offset = start.offset
                for lines in _lines_from(text, start, self._piece_bytes):
                    if lines.first == 1:
                        _refuse_other_tables(lines.content, self._texts[number].name)
                    position = {"source": number, "offset": lines.end.offset, "line": lines.end.line}
                    if not text.seekable:
                        position["crc32"] = lines.end.crc32
                    read, elsewhere, size = partial(parse, lines, labelled=self._labelled), None, len(lines.content)
                    is_here = not isinstance(text.source.path, RemoteFile)  # others are read once, by this process
                    if text.seekable and is_here and lines.ended and offset + size == lines.end.offset:
                        there, without = self._texts[number], replace(lines, content=b"")
                        elsewhere = partial(_parse_at, there, offset, size, without, labelled=self._labelled)
                    offset = lines.end.offset
                    read_raw = partial(_parse_with_fields, lines, labelled=self._labelled) if self._raw else None
                    yield Task(number, position, bytes_before + text.bytes_read(), read, read_raw, elsewhere)
            start = START
            bytes_before += self.sources[number].num_bytes


def _parse_at(text: TextSource, offset: int, size: int, lines: Lines, *, labelled: bool) -> RawPiece:
    """As `parse`, for the lines in `size` bytes of a text with random access."""
    with open_text(text) as opened:
        opened.seek(offset)
        content = opened.read(size)
    if len(content) < size or not content.endswith(b"\n"):
        raise DataError(f"{text.name}: the file has changed while it was read", "start again")
    return parse(replace(lines, content=content), labelled=labelled)


def _refuse_other_tables(content: bytes, name: str) -> None:
    """Checks that the first lines of a text are not those of a CSV or of JSON.

    Raises:
        DataError: if they are, with a hint of what reads them.
    """
    lines = content[:_HEAD_BYTES].splitlines()[:_HEAD_LINES]
    if any(b"\t" in line for line in lines):
        return
    own = "`dlrmctl prepare --schema FILE.toml` reads tables of your own"
    if lines[0].startswith(b"{"):
        raise DataError(f"{name}: JSON lines, expected Criteo's 40 fields with tabs between them", own)
    separator = next((s for s in b",;|" if lines[0].count(s) >= 2), None)
    if separator is None or any(line.count(separator) != lines[0].count(separator) for line in lines[1:-1]):
        return
    shown, fields = chr(separator), lines[0].count(separator) + 1
    header = lines[0].split(bytes([separator]))[0] not in (b"0", b"1")
    if len(DENSE) + len(SPARSE) <= fields <= len(DENSE) + len(SPARSE) + 2:  # without label, or with a number before it
        convert = f"tail -n +2 {name} | tr '{shown}' '\\t'" if header else f"tr '{shown}' '\\t' < {name}"
        numbered = " | cut -f 2-" if fields == len(DENSE) + len(SPARSE) + 2 else ""
        raise DataError(
            f"{name}: {fields} fields with {shown!r} between them{' and a header' * header}, as of Criteo's rows that "
            "were converted; expected tabs and no header",
            f"take the original train.txt, or convert it back: {convert}{numbered} > train.txt",
        )
    raise DataError(f"{name}: a table of {fields} columns with {shown!r} between them, expected 40 and tabs", own)


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
