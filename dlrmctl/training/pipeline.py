"""Prepares the next batch while a step trains on the one before it.

    reader -> copy to the device -> rows of its ids -> their numbers, and then the rows, to the ranks that hold them

None of this reads a weight, so the results are the same to the bit. On CPUs, the exchanges run in threads of gloo; on
GPUs in a stream of NCCL. There, the rest can have a stream of its own too, and the host then waits for this stream
alone where it needs numbers of rows.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch

from dlrmctl.assembly.model import Model
from dlrmctl.data.batch import Batch
from dlrmctl.data.errors import DataError
from dlrmctl.embeddings.collection import SentRows


@dataclass(frozen=True)
class ReadyBatch:
    """A batch on the device of its rank.

    Attributes:
        tables, wide: its rows in the tables, and in those of the first-order part, if there is one.
    """

    batch: Batch
    tables: SentRows
    wide: SentRows | None

    @property
    def rows(self) -> list[SentRows]:
        return [self.tables] if self.wide is None else [self.tables, self.wide]


def ready(batch: Batch, model: Model) -> ReadyBatch:
    """Begins to send the rows of a batch on the device to the ranks that hold them; every rank must call it.

    Raises:
        ValueError: on a CPU, before anything is sent, if an id has no row or a bag is too large.
    """
    tables, wide = model.sharded.embeddings.rows_of(batch), model.wide
    if wide is None:
        return ReadyBatch(batch, tables, None)
    return ReadyBatch(batch, tables, wide.sharded.embeddings.rows_of(wide.module.ids_of(batch.dense_BI, batch)))


class Pipeline:
    """Yields ready batches. A step calls `advance` between its parts, which prepares the batch after it.

    Args:
        batches: of this rank, in main memory; every rank has as many.
        model: whose rows are sent.
        device: of this rank.
        change: called with each batch in main memory and its number, counted from `first`.
        most: number of batches to yield at most; no other is read.
        own_stream: whether a GPU copies batches, and exchanges their rows, in a stream of its own.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        model: Model,
        device: torch.device,
        *,
        change: Callable[[Batch, int], None] | None = None,
        first: int = 1,
        most: int | None = None,
        own_stream: bool = False,
    ) -> None:
        self._batches, self._model, self._device = islice(batches, most), model, device
        self._change, self._number = change, first
        self._stream = torch.cuda.Stream(device) if own_stream and device.type == "cuda" else None
        self._step_began = self._mark()
        self._stages: Iterator[None] | None = None  # of the next batch; None if it was not begun
        self._next: ReadyBatch | None = None
        self._last: ReadyBatch | None = None
        self._problem: Exception | None = None

    def __iter__(self) -> "Pipeline":
        return self

    def __next__(self) -> ReadyBatch:
        """Returns the next batch.

        Raises:
            DataError, ValueError, OSError: those of reading it, also if they occurred in a step before.
        """
        self.advance()
        for _ in self._stages or ():
            pass
        self._stages, self._last, self._next = None, self._next, None
        if self._problem is not None:
            raise self._problem
        if self._last is None:
            raise StopIteration
        self._step_began = self._mark()
        return self._last

    def advance(self) -> None:
        """Takes the next stage in the preparation of the next batch; does nothing if it is ready. Of three stages, the
        first reads and copies it, the second sends its rows, and the last receives those of other ranks.
        """
        if self._stages is None:
            self._stages = self._prepare()
        next(self._stages, None)

    def _prepare(self) -> Iterator[None]:
        with self._aside():
            found = self._begin()
        if found is None:
            return
        yield
        with self._aside():
            for rows in found.rows:
                rows.send()
        yield
        with self._aside():
            for rows in found.rows:
                rows.receive()
        self._join(found)
        self._next = found

    def _begin(self) -> ReadyBatch | None:
        """Returns the next batch, with the exchange of its rows begun; None if there is none."""
        try:
            batch = next(self._batches, None)
            if batch is None:
                return None
            if self._change is not None:
                self._change(batch, self._number)
            self._number += 1
            return ready(batch.to(self._device, non_blocking=True), self._model)
        except (DataError, ValueError, OSError) as problem:
            if self._last is None:
                raise
            # The other ranks need this one to complete the step, and for the exchange. It fails where it would without
            # a pipeline: when it needs the batch.
            self._problem = problem
            return ready(self._last.batch, self._model)

    def _mark(self) -> torch.cuda.Event | None:
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def _aside(self) -> AbstractContextManager[object]:
        """The stream of the preparation. It starts after what was enqueued before this step, such as an evaluation that
        has made indices which both use."""
        if self._stream is None:
            return nullcontext()
        assert self._step_began is not None
        self._stream.wait_event(self._step_began)
        return torch.cuda.stream(self._stream)

    def _join(self, found: ReadyBatch) -> None:
        """Lets the stream of the steps wait for the batch, and keeps the memory of the batch until it is used."""
        if self._stream is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._stream)
        found.batch.record_stream(stream)
        for rows in found.rows:
            rows.record_stream(stream)
