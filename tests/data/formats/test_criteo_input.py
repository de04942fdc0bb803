"""Criteo sources give the same pieces wherever one starts, in any threads, in bounded memory."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.criteo import CriteoInput, parse
from dlrmctl.data.formats.lines import Lines
from dlrmctl.data.formats.raw import Input, RawPiece, Task
from tests.data.criteo_files import as_text, make_rows, write

PIECE_BYTES = 3000


def same(a: RawPiece, b: RawPiece) -> bool:
    columns = [(c.values, c.present_N) for piece in (a, b) for c in piece.sparse]
    arrays = [(a.lines_N, b.lines_N), (a.labels_N, b.labels_N)]
    arrays.append((a.dense_IN.view(np.uint16), b.dense_IN.view(np.uint16)))  # bits: NaN equals itself
    arrays += [pair for x, y in zip(columns[:26], columns[26:], strict=True) for pair in zip(x, y, strict=True)]
    return all(np.array_equal(x, y) for x, y in arrays) and (a.repaired, a.bad) == (b.repaired, b.bad)


def told(task: Task) -> tuple[int, dict[str, int], int]:
    return task.source, dict(task.position), task.bytes_done


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """A plain file, a gzip file and a packed archive; some lines are bad, and some lost fields."""
    rows = make_rows(60)
    for row in rows[::7]:
        row[30:] = ["0badcafe"]
    rows[5] = ["x"]
    paths = [write(tmp_path / "day_0", rows), write(tmp_path / "day_1.gz", rows[::-1])]
    with tarfile.open(tmp_path / "day_2.tgz", "w:gz") as archive:
        for name, content in [("readme.txt", b"x" * 9000), ("train.txt", as_text(rows[3:])[:-1])]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [*paths, tmp_path / "day_2.tgz"]


def test_pieces_are_the_same_from_every_position(sources: list[Path]) -> None:
    whole: Input = CriteoInput(sources, piece_bytes=PIECE_BYTES)
    tasks = list(whole.tasks())
    assert [task.source for task in tasks].count(1) > 3
    pieces = [task.read() for task in tasks]
    (lines,) = [parse(Lines(sources[0].read_bytes(), 1, True))]
    assert [n for t, p in zip(tasks, pieces, strict=True) if t.source == 0 for n in p.lines_N] == lines.lines_N.tolist()
    assert sum(sum(piece.repaired.values()) for piece in pieces) == sum(lines.repaired.values()) * 3 - 1
    assert [task.bytes_done for task in tasks] == sorted(task.bytes_done for task in tasks)
    for number, task in enumerate(tasks):
        rest = list(CriteoInput(sources, piece_bytes=PIECE_BYTES).tasks(task.position))
        assert [told(t)[:2] for t in rest] == [told(t)[:2] for t in tasks[number + 1 :]]
        assert all(same(t.read(), piece) for t, piece in zip(rest, pieces[number + 1 :], strict=True))


def test_threads_read_pieces_like_one(sources: list[Path]) -> None:
    tasks = list(CriteoInput(sources, piece_bytes=PIECE_BYTES).tasks())
    with ThreadPoolExecutor(4) as threads:
        pieces = list(threads.map(lambda task: task.read(), tasks))
    assert all(same(piece, task.read()) for piece, task in zip(pieces, tasks, strict=True))


def test_the_identity_tells_changed_sources(sources: list[Path]) -> None:
    before = CriteoInput(sources).identity()
    assert before == CriteoInput(sources).identity()
    assert before != CriteoInput(sources[:2]).identity()
    assert before != CriteoInput(sources[::-1]).identity()
    assert before != CriteoInput(sources, piece_bytes=PIECE_BYTES).identity()
    os.utime(sources[0], ns=(1, 1))
    assert before != CriteoInput(sources).identity()


def test_a_packed_source_that_changed_before_a_position_is_noticed(tmp_path: Path) -> None:
    rows = make_rows(60)
    path = write(tmp_path / "day_0.gz", rows)
    tasks = list(CriteoInput([path], piece_bytes=PIECE_BYTES).tasks())
    rows[0][0] = "1" if rows[0][0] == "0" else "0"
    write(path, rows)
    with pytest.raises(DataError, match=r"day_0\.gz: the text has changed since it was read before"):
        next(CriteoInput([path], piece_bytes=PIECE_BYTES).tasks(tasks[2].position))
    write(path, rows[:2])
    with pytest.raises(DataError, match="ends before byte"):
        next(CriteoInput([path], piece_bytes=PIECE_BYTES).tasks(tasks[2].position))


def test_a_plain_source_that_has_shrunk_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "day_0", make_rows(60))
    tasks = list(CriteoInput([path], piece_bytes=PIECE_BYTES).tasks())
    os.truncate(path, 2000)
    with pytest.raises(DataError, match=r"day_0: 2,000 bytes, but .* of them were read before"):
        next(CriteoInput([path], piece_bytes=PIECE_BYTES).tasks(tasks[2].position))


def test_unlabelled_rows_are_read_as_such(tmp_path: Path) -> None:
    rows = make_rows(20)
    (tmp_path / "test.txt").write_bytes(as_text([row[1:] for row in rows]))
    (task,) = CriteoInput([tmp_path / "test.txt"], labelled=False).tasks()
    labelled = parse(Lines(as_text(rows), 1, True))
    assert np.array_equal(task.read().dense_IN, labelled.dense_IN, equal_nan=True)


MEMORY_PROGRAM = """
import resource, sys
from dlrmctl.data.formats.criteo import CriteoInput
CriteoInput([sys.argv[1]])
small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lines = 0
for task in CriteoInput([sys.argv[2]]).tasks():
    piece = task.read()
    lines += len(piece) + len(piece.bad)
    if lines > 1 << 18:
        break
print(lines, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - small) * 1024)
"""


AWKWARD = {
    "tabs": b"\t" * (1 << 20),
    "newlines": b"\n" * (1 << 20),
    "tabs and newlines": b"\t" * ((1 << 20) - 1) + b"\n",
    "zeros and newlines": (b"\0" * 255 + b"\n") * (1 << 12),
}


@pytest.mark.parametrize("kind", ["zeros", *AWKWARD])
def test_files_that_are_no_text_take_bounded_memory(tmp_path: Path, kind: str) -> None:
    small, path = write(tmp_path / "small", make_rows(2)), tmp_path / "big"
    if kind == "zeros":
        path.touch()
        os.truncate(path, 300 << 20)
    else:
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(300):
                file.write(AWKWARD[kind])
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(small), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines, more = map(int, done.stdout.split())
    assert lines >= 1
    assert more < 150 << 20
