"""The first phase of a preparation: workers parse the input, and write its rows to disk as parts, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import Input, Position, RawPiece, Task
from dlrmctl.data.preparation.keys import keys_of
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import PartInfo, Parts
from dlrmctl.data.preparation.report import PrepareProgress, Progress
from dlrmctl.data.preparation.tally import Tally
from dlrmctl.data.workers.pool import Shared, Workers

PART_ROWS = 1 << 18
_PIECES_OF_PART = 4  # that a worker writes: about as many rows
_MOST_TEXT_BYTES = 1 << 26  # of values that wait for the next part
_EXPECTED = {
    "criteo": "a row of Criteo has a label, 13 integers and 26 categoricals, with tabs between them",
    "csv": "the first line names the columns, and each line below it is a row",
    "jsonl": "each line is a row: a JSON object",
}


@dataclass(frozen=True)
class Read:
    """What was read for a part.

    Attributes:
        tally: tally of its pieces.
        position: where reading continues; None at the end of the input.
        bytes_done: bytes on disk of the sources up to there.
    """

    tally: Tally
    position: Position | None
    bytes_done: int

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"tally": self.tally.to_dict(), "position": self.position, "bytes_done": self.bytes_done}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Read":
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
    tally, position, begun, ended = Tally.of_nothing(len(input.sources)), None, 0, False
    for about in parts.load():
        read = Read.from_dict(about)
        tally.merge(read.tally)
        position, begun, ended = read.position, read.bytes_done, read.position is None

    def report(at: int) -> None:
        progress(PrepareProgress("parse", at, total, tally.rows, begun))

    report(begun)
    reading = _Reading(input, parts, options, workers, report, tally, position, begun)
    if not ended:
        reading.by_workers() if workers.apart else reading.here(part_rows)
    if tally.rows == 0:
        shown = tally.shown_examples(input)
        first = f"; {shown[0]}" if shown else ""
        raise DataError(f"{input.sources[0].name}: no good row{first}", tally.remedy() or _EXPECTED.get(input.format))
    if input.weight is not None and not tally.weight:
        raise DataError(f"all weights in column {input.weight!r} are 0", "a row of weight 0 counts for nothing")
    end = total or reading.done
    progress(PrepareProgress("parse", end, end, tally.rows, begun))
    return tally


@dataclass
class _Reading:
    """Makes parts of the input from a position on.

    Attributes:
        input, parts, options, workers: what is read, into which parts, how and by whom.
        report: called with the bytes of the sources that were read.
        tally: what was counted so far.
        position: where reading begins; None for the beginning of the input.
        done: bytes of the sources that were read so far.
    """

    input: Input
    parts: Parts
    options: PrepareOptions
    workers: Workers
    report: Callable[[int], None]
    tally: Tally
    position: Position | None
    done: int

    def here(self, part_rows: int) -> None:
        """Reads pieces in workers, and writes their parts, of at least `part_rows` rows, here."""
        input, tally, options = self.input, self.tally, self.options
        waiting, of_part = _Waiting(), Tally.of_nothing(len(input.sources))
        writing = _Writing(self.parts, self.workers, keys_of(options.split, input))
        try:
            for task, whole in _pieces(input, self.position, tally.rows, options.limit, self.workers):
                piece = _up_to(options.limit, tally.rows, whole)
                for counts in (tally, of_part):
                    counts.add(input, task.source, piece)
                tally.check_rejected(input, options.max_bad_rows)
                self.done = task.bytes_done
                waiting.add(piece)
                if waiting.rows >= part_rows or waiting.text_bytes >= _MOST_TEXT_BYTES:
                    writing.start(waiting.take(), Read(of_part, task.position, self.done))
                    of_part = Tally.of_nothing(len(input.sources))
                self.report(self.done)
            if waiting.rows:
                writing.start(waiting.take(), Read(of_part, None, self.done))
            writing.finish()
        finally:
            writing.wait()

    def by_workers(self) -> None:
        """Lets workers read pieces and write parts of a fixed number of them."""
        input, tally, limit, first = self.input, self.tally, self.options.limit, len(self.parts)
        shared = Shared((input, self.parts, self.options))
        groups: deque[tuple[list[Task], bool]] = deque()

        def calls() -> Iterator[Callable[[], tuple[PartInfo, list[Tally]]]]:
            for number, group in enumerate(_grouped(input.tasks(self.position)), first):
                groups.append(group)
                yield partial(_write_part, shared, number, *group, limit)

        if limit is not None and tally.rows >= limit:
            return
        for number, (info, tallies) in enumerate(self.workers.in_order(calls()), first):
            tasks, _ = groups.popleft()
            left = None if limit is None else limit - tally.rows
            if left is not None and info.rows >= left:
                info, tallies = _write_part(shared, number, tasks, True, left)
            for of_piece in tallies:
                tally.merge(of_piece)
                tally.check_rejected(input, self.options.max_bad_rows)
            self.parts.add(info)
            self.done = tasks[-1].bytes_done
            self.report(self.done)
            if limit is not None and tally.rows >= limit:
                break


def _grouped(tasks: Iterable[Task]) -> Iterator[tuple[list[Task], bool]]:
    """Yields the tasks of each part, and whether they are the last."""
    group: list[Task] = []
    for task in tasks:
        if len(group) == _PIECES_OF_PART:
            yield group, False
            group = []
        group.append(task.elsewhere())
    if group:
        yield group, True


def _write_part(
    shared: Shared[tuple[Input, Parts, PrepareOptions]],
    number: int,
    tasks: Sequence[Task],
    ended: bool,
    limit: int | None,
) -> tuple[PartInfo, list[Tally]]:
    """Reads pieces and writes them as a part; returns its description and what was counted in each piece.

    Args:
        shared: the input, its parts and the options.
        number: of the part.
        tasks: read the pieces.
        ended: whether the input ends with them.
        limit: the most rows.
    """
    input, parts, options = shared.get()
    tallies, pieces, of_part = [], list[RawPiece](), Tally.of_nothing(len(input.sources))
    for task in tasks:
        if limit is not None and of_part.rows >= limit:
            break
        piece = _up_to(limit, of_part.rows, task.read())
        of_piece = Tally.of_nothing(len(input.sources))
        of_piece.add(input, task.source, piece)
        of_part.merge(of_piece)
        tallies.append(of_piece)
        pieces.append(piece)
    about = Read(of_part, None if ended else tasks[-1].position, tasks[-1].bytes_done)
    keys = keys_of(options.split, input)
    return parts.write(number, pieces, about.to_dict(), keys and keys(pieces)), tallies


def _pieces(
    input: Input, position: Position | None, rows: int, limit: int | None, workers: Workers
) -> Iterator[tuple[Task, RawPiece]]:
    """Yields the pieces after a position, until there are enough rows."""

    if limit is not None and rows >= limit:
        return
    for task, piece in workers.in_order(partial(_read, replace(task, read_raw=None)) for task in input.tasks(position)):
        yield task, piece
        rows += len(piece)
        if limit is not None and rows >= limit:
            return


def _read(task: Task) -> tuple[Task, RawPiece]:
    return replace(task, read=_done), task.read()


def _done() -> RawPiece:
    raise AssertionError("the piece of this task was read")


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
        keys: makes the keys of rows from their pieces, if they have keys.
    """

    def __init__(self, parts: Parts, workers: Workers, keys: Callable[[Sequence[RawPiece]], np.ndarray] | None) -> None:
        self._parts, self._workers, self._keys = parts, workers, keys
        self._now: Future[None] | None = None

    def start(self, pieces: list[RawPiece], read: Read) -> None:
        """Begins a part when the previous one is done."""
        self.finish()
        self._now = self._workers.submit_here(partial(self._write, pieces, read.to_dict()))

    def _write(self, pieces: list[RawPiece], about: dict[str, Any]) -> None:
        keys_N = self._keys and self._keys(pieces)
        self._parts.add(self._parts.write(len(self._parts), pieces, about, keys_N))

    def finish(self) -> None:
        now, self._now = self._now, None
        if now:
            now.result()

    def wait(self) -> None:
        """Waits until nothing is being written, without raising its errors."""
        if self._now:
            self._now.exception()
