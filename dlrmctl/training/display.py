"""Progress of training: a live bar on a terminal, steady lines in a file, nothing on ranks other than 0."""

import resource
from collections.abc import Mapping, Sequence

import torch
from rich.progress import BarColumn, TaskProgressColumn, TextColumn

from dlrmctl.assembly.model import Model
from dlrmctl.assembly.tables import summary, unsorted_heads
from dlrmctl.console.console import messages, print_table, say
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import bytes_text, number_text
from dlrmctl.console.time_left import TimeLeftColumn
from dlrmctl.data.reader import Reader
from dlrmctl.embeddings.sharding.placement import Placement
from dlrmctl.ranks.group import Ranks


class TrainingDisplay(BarDisplay):
    """Shows step, loss, NE, examples per second and time left.

    Args:
        total: steps of the whole run.
        done: steps that were done before this process started.
        speaks: False on all ranks but one.
    """

    def __init__(self, total: int, done: int, *, speaks: bool) -> None:
        self._examples = 0
        super().__init__(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeLeftColumn(done_before=done),
            total=total,
            shown=speaks,
            completed=done,
            status="",
        )

    def advance(self, examples: int) -> None:
        """One step is done."""
        self._examples += examples
        if self.bar:
            self.bar.advance(self.task)

    def rate(self) -> float:
        """Examples per second since the last call, pauses left out."""
        rate = self._examples / self.seconds
        self._examples = 0
        self.restart()
        return rate

    def report(self, step: int, values: Mapping[str, float | None], examples_per_second: float) -> None:
        """One line of progress, or the bar's text."""
        loss_and_ne = f"loss {number_text(values['loss'])}  ne {number_text(values['ne'])}"
        speed = f"examples/s {examples_per_second:,.0f}"
        memory = f"memory {bytes_text(peak_memory_bytes())}"
        self.show(f"step {step}  {loss_and_ne}  {speed}  {memory}", now=True, status=f"{loss_and_ne}  {speed}")

    def say(self, message: str) -> None:
        if self.shown:
            say(message)


def peak_memory_bytes() -> int:
    """The most memory this process has had: of its GPU if it uses one, else main memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def introduction(reader: Reader, model: Model, ranks: Ranks) -> list[str]:
    """The lines before a training: the data, the tables, and the memory that they need."""
    plan, most = model.sharded.plan, max(model.sharded.bytes_per_rank)
    tables = model.sharded.embeddings.features
    return [
        f"{reader.num_examples:,} training examples, {reader.num_batches:,} steps of {reader.batch_size:,} per epoch, "
        f"on {ranks.world_size} x {ranks.device.type}",
        f"{len(plan)} tables, {sum(table.rows for table in plan):,} rows, "
        f"with their optimizer state at most {bytes_text(most)} per rank",
        summary(tables, model.sharded.embeddings.dim),
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
