"""Small files in Criteo's format, made up here, with the values they hold."""

import gzip
import random
from pathlib import Path

Row = list[str]


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
