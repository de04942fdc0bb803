"""TensorBoard: event files in the run directory."""

from collections.abc import Mapping
from typing import Any

from dlrmctl.tracking.tracker import TrackedRun, scalars


class TensorBoardTracker:
    """Writes scalars such as "train/ne" and "validation/auc" to RUN/events."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides events of these steps, which a killed process may have left.
        self.writer = SummaryWriter(str(run.path / "events"), purge_step=run.first_step or None)

    def record(self, entry: Mapping[str, Any]) -> None:
        for name, value in scalars(entry).items():
            self.writer.add_scalar(name, value, entry["step"])

    def finish(self, summary: Mapping[str, float]) -> None:
        for name, value in summary.items():
            if name.startswith("test/"):
                self.writer.add_scalar(name, value, int(summary["steps"]))

    def close(self, *, failed: bool) -> None:
        self.writer.close()
