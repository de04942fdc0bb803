"""Generated small files in Criteo's format with their values, and a slow reference parser."""

import codecs
import gzip
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.lines import MAX_LINE_BYTES
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.preparation.report import PrepareReport

Row = list[str]
# Label, transformed integers, categoricals; None where missing.
Example = tuple[int, list[float | None], list[int | None]]


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of 40 fields; about one field in six is empty, some values are frequent and some are not."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        dense = [str(int(draw.paretovariate(0.7)) - 3) if draw.random() < 0.85 else "" for _ in range(13)]
        sparse = []
        for column in range(26):
            value = (min(int(draw.paretovariate(0.8)), 10**6) * 2654435761 + column * 97) % 2**32
            sparse.append(f"{value:08x}" if draw.random() < 0.85 else "")
        rows.append([str(int(draw.random() < 0.3)), *dense, *sparse])
    return rows


def as_text(rows: list[Row], end: str = "\n") -> bytes:
    return "".join("\t".join(row) + end for row in rows).encode()


def write(path: Path, rows: list[Row], end: str = "\n") -> Path:
    """A file of these rows, gzip if its name says so."""
    text = as_text(rows, end)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read_slowly(text: bytes, *, labelled: bool = True) -> tuple[dict[int, Example], set[int], set[int]]:
    """Parses a text line by line and field by field.

    Returns:
        The examples by their line; the lines among them that were repaired; and the omitted lines.
    """
    lines = text.removeprefix(codecs.BOM_UTF8).split(b"\n")
    cut = lines.pop()
    examples, repaired, bad = {}, set(), set()
    for number, line in enumerate([*lines, cut] if cut else lines, start=1):
        fields = line.removesuffix(b"\r").split(b"\t")
        whole, num_fields = number <= len(lines), 39 + labelled
        surely_ended = re.fullmatch(rb"[0-9a-fA-F]{8}", fields[-1]) is not None
        lost = num_fields - len(fields)
        if whole and surely_ended and 0 < lost < 26:
            fields += [b""] * lost
        example = _read_fields(fields if labelled else [b"0", *fields])
        if example is None or len(line.removesuffix(b"\r")) > MAX_LINE_BYTES or not (whole or surely_ended):
            bad.add(number)
        else:
            examples[number] = example
            repaired |= {number} if lost else set()
    return examples, repaired, bad


def _read_fields(fields: list[bytes]) -> Example | None:
    if len(fields) != 40 or fields[0] not in (b"0", b"1"):
        return None
    dense: list[float | None] = []
    for field in fields[1:14]:
        match = re.fullmatch(rb"(-?)0*([0-9]{1,19})", field)
        value = int(match[1] + match[2]) if match else 0
        if field and not (match and -(2**63) <= value < 2**63):
            return None
        dense.append(float(np.float16(np.log(max(value, -2) + 3.0))) if field else None)
    if not all(re.fullmatch(rb"[0-9a-fA-F]{0,8}", field) for field in fields[14:]):
        return None
    return int(fields[0]), dense, [int(field, 16) if field else None for field in fields[14:]]


def without_nan(values: np.ndarray) -> list[float | None]:
    """Dense values, None where they are missing."""
    return [None if np.isnan(value) else float(value) for value in values]


def prepare_criteo(
    sources: Sequence[Path | str], out: Path | str, options: PrepareOptions | None = None, progress: Any = None
) -> PrepareReport:
    """Makes the store `out` from Criteo files in the given order."""
    return prepare(CriteoInput(sources), out, options, progress)
