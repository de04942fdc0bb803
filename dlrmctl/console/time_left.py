"""How long work still takes, said once that means something: the first step of many takes longest."""

from rich.progress import Task, TimeRemainingColumn
from rich.text import Text

_SECONDS, _SHARE = 10.0, 0.02  # of work, after either of which its speed is known


def is_known(seconds: float, share: float) -> bool:
    """Whether the time that is left can be told.

    Args:
        seconds: of work so far.
        share: of the work that was done in them.
    """
    return seconds >= _SECONDS or (seconds >= 1 and share >= _SHARE)


class TimeLeftColumn(TimeRemainingColumn):
    """The time that is left, as rich estimates it, once it is known."""

    def __init__(self, *, done_before: float = 0.0) -> None:
        self._done_before = done_before
        super().__init__(compact=True)

    def render(self, task: Task) -> Text:
        own = task.completed - self._done_before
        share = own / max((task.total or 0) - self._done_before, 1)
        if not task.finished and not is_known(task.elapsed or 0.0, share):
            return Text("--:--", style="progress.remaining")
        return super().render(task)
