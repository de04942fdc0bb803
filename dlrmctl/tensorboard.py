"""TensorBoard events beside metrics.jsonl: the same numbers, for those who like to watch."""

from pathlib import Path
from types import TracebackType
from typing import Any

from dlrmctl.errors import UserError


class EventWriter:
    """Writes the numbers of every recorded line as scalars "train/ne", "validation/auc" and so on.

    Args:
        directory: of the event files; made if needed.
        first_step: events of this step and later ones, which a killed run may have left, are hidden.

    Raises:
        UserError: if the package tensorboard is missing.
    """

    def __init__(self, directory: Path, *, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "train.tensorboard needs the package tensorboard",
                "pip install tensorboard, or leave --tensorboard away",
            ) from None
        self.writer = SummaryWriter(str(directory), purge_step=first_step or None)

    def __call__(self, entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                self.writer.add_scalar(f"{entry['kind']}/{name}", value, entry["step"])

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.writer.close()
