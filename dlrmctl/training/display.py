"""Progress of training: a live bar on a terminal, steady lines in a file, nothing on ranks other than 0."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from dlrmctl.assembly.model import Model
from dlrmctl.assembly.tables import summary, unsorted_heads
from dlrmctl.console.console import messages, print_table, say
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import METRICS, bytes_text, number_text
from dlrmctl.data.reader import Reader
from dlrmctl.embeddings.sharding.placement import Placement
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.state import StepSums
from dlrmctl.scoring.metrics import entropy
from dlrmctl.settings.config import Config

_REFRESH_SECONDS = 0.2


class TrainingDisplay(BarDisplay):
    """Shows step, loss, NE, examples per second and time left.

    Args:
        total: steps of the whole run, or of the passes that are planned so far.
        done: steps that were done before this process started.
        speaks: False on all ranks but one.
    """

    def __init__(self, total: int, done: int, *, speaks: bool) -> None:
        super().__init__(shown=speaks)
        self._total, self._done = total, done
        self._examples = 0.0
        self._last, self._last_rate = StepSums(), 0.0
        self._shown_at = 0.0

    def plan_steps(self, total: int) -> None:
        """Sets how many steps are planned, where a further pass begins."""
        self._total = total

    def advance_step(self, window: StepSums, examples: float) -> None:
        """One step is done.

        Args:
            window: sums since the last report.
            examples: of the step.
        """
        self._done += 1
        self._examples += examples
        now = time.monotonic()
        if self.shown and now - self._shown_at >= _REFRESH_SECONDS:
            self._shown_at = now
            # The sums of few steps say little: those of the last report are added to them.
            self._show_step(averages(self._last + window), self._last_rate or self._examples / self.seconds)

    def rate(self) -> float:
        """Examples per second since the last call, pauses left out."""
        self._last_rate = self._examples / self.seconds
        self._examples = 0.0
        self.restart()
        return self._last_rate

    def report(self, window: StepSums, examples_per_second: float) -> None:
        """One line of progress in a file; the bar's text."""
        self._last = window
        self._show_step(averages(window), examples_per_second, now=True)

    def scoring(self, split: str) -> Callable[[int, int], None]:
        """Shows how many of the batches of a split are scored."""

        def show(done: int, total: int) -> None:
            about = f"scoring {split}, {100 * done / total:.0f} %"
            self.show(about, line=f"step {self._done}  {about}")

        return show

    def say(self, message: str) -> None:
        if self.shown:
            say(message)

    def _show_step(self, values: Mapping[str, float | None], rate: float, *, now: bool = False) -> None:
        steps = f"{self._total:,}"
        self._what = f"step {self._done:>{len(steps)},} of {steps}"
        quality = f"loss {number_text(values['loss'])}  {METRICS['ne']} {number_text(values['ne'])}"
        text = f"{quality}  examples/s {rate:,.0f}  memory {bytes_text(peak_memory_bytes())}"
        self.show(text, line=f"step {self._done}  {text}", now=now)


def averages(sums: StepSums) -> dict[str, float | None]:
    """What a line of progress says of steps: loss, NE and calibration; None where they are not defined."""
    base = entropy(sums.positives / sums.examples)
    return {
        "loss": sums.loss / sums.examples,
        "ne": sums.loss / sums.examples / base if base else None,
        "calibration": sums.predicted / sums.positives if sums.positives else None,
    }


def peak_memory_bytes() -> int:
    """The most memory this process has had: of its GPU if it uses one, else main memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def introduction(config: Config, reader: Reader, model: Model, ranks: Ranks) -> list[str]:
    """The lines before a training: the data, the tables, and the memory that they need."""
    plan, most = model.sharded.plan, max(model.sharded.bytes_per_rank)
    tables = model.sharded.embeddings.features
    return [
        f"{reader.num_examples:,} training examples, {reader.num_batches:,} steps of {reader.batch_size:,} per epoch, "
        f"on {ranks.world_size} x {ranks.device.type}",
        f"{len(plan)} tables, {sum(table.rows for table in plan):,} rows, "
        f"with their optimizer state at most {bytes_text(most)} per rank",
        summary(tables, config.embeddings),
        *unsorted_heads(tables, reader.source),
    ]


def show_placements(plan: Sequence[Placement]) -> None:
    """Shows where every table lives, among the messages: the answer of the command is something else."""
    print_table(
        "plan",
        ["table", "rows", "dim", "bytes", "sharding", "ranks"],
        [
            [t.table, f"{t.rows:,}", str(t.dim), bytes_text(t.bytes), t.sharding, ",".join(map(str, t.ranks))]
            for t in plan
        ],
        to=messages,
    )
