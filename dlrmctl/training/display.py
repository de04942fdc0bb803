"""Progress of training: a live bar on a terminal, lines in a file; only on rank 0."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch

from dlrmctl.assembly.model import Model
from dlrmctl.assembly.tables import summary, unsorted_heads
from dlrmctl.console.console import messages, print_table, say
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import METRICS, bytes_text, counted, number_text
from dlrmctl.data.reader import Reader
from dlrmctl.embeddings.sharding.placement import Placement
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.state import StepSums
from dlrmctl.scoring.metrics import entropy
from dlrmctl.settings.config import Config

_REFRESH_SECONDS = 0.2
_LINES_BETWEEN_DOUBLINGS = 10


class TrainingDisplay(BarDisplay):
    """Shows step, loss, NE, examples per second and time left.

    Args:
        total: number of steps of the run, or of the epochs planned so far.
        done: number of steps done before this process started.
        speaks: True on one rank.
        trial: what a trial shows with the step and with the loss, in place of all messages.
    """

    def __init__(self, total: int, done: int, *, speaks: bool, trial: tuple[str, str] | None = None) -> None:
        super().__init__(shown=speaks)
        self._trial = trial
        self._total, self._done = total, done
        self._examples = 0.0
        self._epoch = 0  # shown if the number of epochs is not known
        self._last, self._last_rate = StepSums(), 0.0
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        super().__enter__()
        if self.bar:
            self._name_step()
            self.show()
        return self

    def begin_epoch(self, number: int, total: int) -> None:
        """Begins an epoch that may be the last.

        Args:
            number: from 1.
            total: number of steps up to its end.
        """
        self._epoch, self._total = number, total

    def expect(self, total: int) -> None:
        """Sets the number of steps of the run or the epoch, where it is not known from the beginning."""
        self._total = total

    def _text_left(self) -> str:
        left = super()._text_left()
        return f"{left} in epoch {self._epoch}" if left and self._epoch else left

    def advance_step(self, window: StepSums, examples: float) -> None:
        """Counts a step.

        Args:
            window: sums since the last report.
            examples: number in the step.
        """
        self._done += 1
        self.add_examples(examples)
        now = time.monotonic()
        if self.shown and now - self._shown_at >= _REFRESH_SECONDS:
            self._shown_at = now
            # The sums of few steps are noisy, so those of the last report are added.
            self._show_step(averages(self._last + window), self._last_rate or self._examples / self.seconds)

    def add_examples(self, number: float) -> None:
        """Counts examples of steps."""
        self._examples += number

    def rate(self) -> float:
        """Examples per second since the last call, without pauses."""
        self._last_rate = self._examples / self.seconds
        self._examples = 0.0
        self.restart()
        return self._last_rate

    def report(self, window: StepSums, examples_per_second: float, *, as_line: bool = True) -> None:
        """Updates the text of the bar; without a bar, prints a line of progress if `as_line`."""
        self._last = window
        if self.bar or as_line:
            self._show_step(averages(window), examples_per_second, now=True)

    def scoring(self, split: str) -> Callable[[int, int], None]:
        """Shows the progress of scoring a split."""

        def show(done: int, total: int) -> None:
            about = f"scoring {split}, {100 * done / total:.0f} %"
            self.show(about, line=f"{self._prefix()}step {self._done}  {about}")

        return show

    def say(self, message: str) -> None:
        if self.shown and not self._trial:
            say(message)

    def _prefix(self) -> str:
        return f"{self._trial[0]}, " if self._trial else ""

    def _name_step(self) -> None:
        steps = f"{self._total:,}"
        self._what = f"{self._prefix()}step {self._done:>{len(steps)},} of {steps}"

    def _show_step(self, values: Mapping[str, float | None], rate: float, *, now: bool = False) -> None:
        self._name_step()
        quality = f"loss {number_text(values['loss'])}  {METRICS['ne']} {number_text(values['ne'])}"
        beside = f"{self._trial[1]}  " if self._trial and self._trial[1] else ""
        text = f"{beside}{quality}  examples/s {rate:,.0f}  memory {bytes_text(peak_memory_bytes())}"
        self.show(text, line=f"{self._prefix()}step {self._done}  {text}", now=now and not self._trial)


def averages(sums: StepSums) -> dict[str, float | None]:
    """Loss, NE and calibration of steps; None where they are not defined."""
    if not sums.weight:
        return {"loss": None, "ne": None, "calibration": None}
    base = entropy(sums.positives / sums.weight)
    return {
        "loss": sums.loss / sums.weight,
        "ne": sums.loss / sums.weight / base if base else None,
        "calibration": sums.predicted / sums.positives if sums.positives else None,
    }


def thinned(every: int, step: int, *, most: int) -> int:
    """The steps between two lines of a run without a planned end: doubled as the run gets longer.

    Args:
        every: at first.
        step: the number of steps done.
        most: the largest.
    """
    while step > every * _LINES_BETWEEN_DOUBLINGS and 2 * every <= most:
        every *= 2
    return every


def peak_memory_bytes() -> int:
    """Peak memory of this process: on its GPU if it uses one, otherwise main memory."""
    if torch.cuda.is_initialized() and (peak := torch.cuda.max_memory_allocated()):
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def introduction(config: Config, reader: Reader, model: Model, ranks: Ranks) -> list[str]:
    """Lines to print before training: data, tables, and their memory."""
    plan, most = model.sharded.plan, max(model.sharded.bytes_per_rank)
    tables = model.sharded.embeddings.features
    return [
        f"{reader.num_examples:,} training examples, {reader.num_batches:,} steps of {reader.batch_size:,} per epoch, "
        f"on {ranks.world_size} x {ranks.device.type}",
        f"{counted(len(plan), 'table')}, {sum(table.rows for table in plan):,} rows, "
        f"with their optimizer state at most {bytes_text(most)} per rank",
        summary(tables, config.embeddings),
        *_first_order(model),
        *unsorted_heads(tables, reader.source),
    ]


def _first_order(model: Model) -> list[str]:
    """A line about the first-order weights, if there are any."""
    if model.wide is None:
        return []
    sharded, buckets = model.wide.sharded, len(model.wide.module.bucketed)
    rows, most = sum(table.rows for table in sharded.plan), max(sharded.bytes_per_rank)
    return [
        f"{rows:,} first-order weights, of rows and of the buckets of {counted(buckets, 'dense feature')}, at most "
        f"{bytes_text(most)} per rank"
    ]


def show_placements(title: str, plan: Sequence[Placement]) -> None:
    """Prints the placement of tables, to standard error."""
    print_table(
        title,
        ["table", "rows", "dim", "bytes", "sharding", "ranks"],
        [
            [t.table, f"{t.rows:,}", str(t.dim), bytes_text(t.bytes), t.sharding, ",".join(map(str, t.ranks))]
            for t in plan
        ],
        to=messages,
    )
