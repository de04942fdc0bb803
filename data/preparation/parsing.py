"""The first phase of a preparation: threads parse the input, and write its rows to disk as parts, in order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import Input, Position, RawPiece, Task
from dlrmctl.data.preparation.arranging import keys_of
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.preparation.report import PrepareProgress, Progress
from dlrmctl.data.preparation.tally import SourceTally, Tally
from dlrmctl.data.preparation.workers import Workers

PART_ROWS = 1 << 18
_MOST_TEXT_BYTES = 1 << 26  # of values that wait for the next part
_EXPECTED = {
    "criteo": "a row of Criteo has a label, 13 integers and 26 categoricals, with tabs between them",
    "csv": "the first line names the columns, and each line below it is a row",
    "jsonl": "each line is a row: a JSON object",
}


@dataclass(frozen=True)
class ReadSoFar:
    """The state of the reading at the end of a part.

    Attributes:
        tally: tally of everything read.
        position: where reading continues; None at the end of the input.
        bytes_done: bytes on disk of the sources that were read.
    """

    tally: Tally
    position: Position | None
    bytes_done: int

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        ended = self.position is None
        return {
            "tally": self.tally.to_dict(),
            "position": self.position,
            "bytes_done": self.bytes_done,
            "ended": ended,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ReadSoFar":
        """Parses what `to_dict` returned."""
        return cls(Tally.from_dict(values["tally"]), values["position"], values["bytes_done"])


def read_input(
    input: Input, parts: Parts, options: PrepareOptions, workers: Workers, progress: Progress, part_rows: int
) -> Tally:
    """Makes the missing parts; returns what was counted while reading all of them.

    Raises:
        DataError: if a source cannot be read, too many lines are bad, or no line is good.
    """
    known = [source.num_bytes for source in input.sources]
    total = sum(known) if all(known) else 0
    tally, position, begun, ended = Tally([SourceTally() for _ in input.sources]), None, 0, False
    if about := parts.load():
        so_far = ReadSoFar.from_dict(about)
        tally, position, begun, ended = so_far.tally, so_far.position, so_far.bytes_done, so_far.position is None
    done, waiting = begun, _Waiting()
    writing = _Writing(parts, workers, keys_of(options.split, input))
    try:
        for task, whole in () if ended else _pieces(input, position, tally.rows, options.limit, workers):
            piece = _up_to(options.limit, tally.rows, whole)
            tally.add(input, task.source, piece)
            tally.check_rejected(input, options.max_bad_rows)
            done = task.bytes_done
            waiting.add(piece)
            if waiting.rows >= part_rows or waiting.text_bytes >= _MOST_TEXT_BYTES:
                writing.start(waiting.take(), ReadSoFar(tally, task.position, done))
            progress(PrepareProgress("parse", done, total, tally.rows, begun))
        if waiting.rows:
            writing.start(waiting.take(), ReadSoFar(tally, None, done))
        writing.finish()
    finally:
        writing.wait()
    if tally.rows == 0:
        shown = tally.shown_examples(input)
        first = f"; {shown[0]}" if shown else ""
        raise DataError(f"{input.sources[0].name}: no good row{first}", tally.remedy() or _EXPECTED.get(input.format))
    if input.weight is not None and not tally.weight:
        raise DataError(f"all weights in column {input.weight!r} are 0", "a row of weight 0 counts for nothing")
    progress(PrepareProgress("parse", total or done, total or done, tally.rows, begun))
    return tally


def _pieces(
    input: Input, position: Position | None, rows: int, limit: int | None, workers: Workers
) -> Iterator[tuple[Task, RawPiece]]:
    """Yields the pieces after a position, until there are enough rows."""

    def read(task: Task) -> tuple[Task, RawPiece]:
        return task, task.read()

    if limit is not None and rows >= limit:
        return
    for task, piece in workers.in_order(partial(read, task) for task in input.tasks(position)):
        yield task, piece
        rows += len(piece)
        if limit is not None and rows >= limit:
            return


def _up_to(limit: int | None, rows: int, piece: RawPiece) -> RawPiece:
    """Returns the rows of a piece up to the limit of the input; the count of its repaired lines does not change."""
    room = len(piece) if limit is None else limit - rows
    if room >= len(piece):
        return piece
    bad = [bad for bad in piece.bad if bad.line < piece.lines_N[room - 1]]
    return replace(piece.pick(np.arange(room)), bad=bad)


class _Waiting:
    """Pieces for the next part."""

    def __init__(self) -> None:
        self._pieces: list[RawPiece] = []
        self.rows = self.text_bytes = 0

    def add(self, piece: RawPiece) -> None:
        self._pieces.append(piece)
        self.rows += len(piece)
        self.text_bytes += sum(len(texts.content) for column in piece.sparse for texts in column.texts)

    def take(self) -> list[RawPiece]:
        pieces, self._pieces = self._pieces, []
        self.rows = self.text_bytes = 0
        return pieces


class _Writing:
    """Writes one part at a time, while the next one is parsed.

    Args:
        keys: makes the keys of rows from their pieces and the number of the first one, if they have keys.
    """

    def __init__(
        self, parts: Parts, workers: Workers, keys: Callable[[Sequence[RawPiece], int], np.ndarray] | None
    ) -> None:
        self._parts, self._workers, self._keys = parts, workers, keys
        self._now: Future[None] | None = None

    def start(self, pieces: list[RawPiece], so_far: ReadSoFar) -> None:
        """Begins a part when the previous one is done."""
        self.finish()
        self._now = self._workers.submit(partial(self._write, pieces, so_far.to_dict()))

    def _write(self, pieces: list[RawPiece], about: dict[str, Any]) -> None:
        first = sum(info.rows for info in self._parts.infos)
        self._parts.write(pieces, about, self._keys and self._keys(pieces, first))

    def finish(self) -> None:
        now, self._now = self._now, None
        if now:
            now.result()

    def wait(self) -> None:
        """Waits until nothing is being written, without raising its errors."""
        if self._now:
            self._now.exception()
