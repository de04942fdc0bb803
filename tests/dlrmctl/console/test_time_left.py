"""A time that is left is told once it means something."""

import pytest
from rich.progress import Progress

from dlrmctl.console.time_left import TimeLeftColumn


@pytest.mark.parametrize(
    ("steps", "seconds", "known"),
    [(3, 0.5, False), (3, 5.0, False), (3, 20.0, True), (300, 5.0, True), (300, 0.9, False), (10_000, 0.5, True)],
)
def test_the_time_left_is_told_after_ten_seconds_or_a_fiftieth_of_the_work(steps: int, seconds: float, known: bool):
    now = 0.0
    progress = Progress(TimeLeftColumn(done_before=900), get_time=lambda: now)
    number = progress.add_task("", total=10_900, completed=900)
    for _ in range(steps):
        now += seconds / steps
        progress.advance(number)
    column, task = progress.columns[0], progress.tasks[0]
    assert isinstance(column, TimeLeftColumn)
    assert (column.render(task).plain != "--:--") == known
