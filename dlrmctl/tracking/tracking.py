"""Starts the trackers of a run (`--tracker`) and ends them with it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dlrmctl.data.files import write_whole
from dlrmctl.errors import Interrupted
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.records import read_record
from dlrmctl.settings.config import Config
from dlrmctl.tracking.mlflow import MlflowTracker
from dlrmctl.tracking.tensorboard import TensorBoardTracker
from dlrmctl.tracking.tracker import TrackedRun, Tracker, flat_settings, summary_of
from dlrmctl.tracking.wandb import WandbTracker

_FILE = "trackers.json"  # what trackers call this run, so that a resumed run continues there
_TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


def check_trackers(config: Config) -> None:
    """Checks, before there is a run, that the trackers are installed and answer.

    Raises:
        UserError: if one is not, or does not.
    """
    for name in config.train.trackers:
        if (check := getattr(_TRACKERS[name], "check", None)) is not None:
            check()


@contextmanager
def tracked(config: Config, run: RunDirectory, *, first_step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Tells the trackers of the settings about every line that the run records.

    Args:
        run: has its settings and plan.
        first_step: first step that will be recorded.

    Yields:
        A function that takes the results of the run.

    Raises:
        UserError: if a tracker is not installed or refuses the run.
    """
    trackers: list[Tracker] = []
    known, failed = _known(run), True
    try:
        for name in config.train.trackers:
            tracker = _TRACKERS[name](TrackedRun(run.path, flat_settings(config), first_step, known.get(name)))
            trackers.append(tracker)
            if identity := getattr(tracker, "identity", None):
                known[name] = identity
        if known:
            write_whole(run.path / _FILE, (json.dumps(known, indent=2) + "\n").encode())
        run.listeners += [tracker.record for tracker in trackers]

        def finish(results: Mapping[str, Any]) -> None:
            for tracker in trackers:
                tracker.finish(summary_of(results))

        yield finish
        failed = False
    except (Interrupted, KeyboardInterrupt):
        failed = False
        raise
    finally:
        for tracker in trackers:
            tracker.close(failed=failed)


def _known(run: RunDirectory) -> dict[str, str]:
    path = run.path / _FILE
    if not path.is_file():
        return {}
    return read_record(
        path, lambda values: {name: values.text(name) for name in _TRACKERS if values.has(name)}, "remove it"
    )
