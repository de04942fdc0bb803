"""Weights & Biases: a run of the project that WANDB_PROJECT names; WANDB_MODE=offline writes files only."""

import os
from collections.abc import Mapping
from typing import Any

from dlrmctl.console.console import warn
from dlrmctl.console.text import last_line
from dlrmctl.errors import UserError
from dlrmctl.tracking.tracker import PROJECT, TrackedRun, scalars


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed", 'pip install "dlrmctl[wandb]"') from None
    return wandb


class WandbTracker:
    """Sends numbers in the background; if that fails, the training goes on, and says so.

    Raises:
        UserError: if wandb is not installed, or nobody is logged in and the mode is not offline.
    """

    def __init__(self, run: TrackedRun) -> None:
        wandb, self._tracked = _wandb(), run
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            x_save_requirements=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            root_dir=str(run.path),
            init_timeout=30,
        )
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run.path.name,
                id=run.known_as,
                resume="allow" if run.known_as else None,
                config=dict(run.settings),
                dir=str(run.path),
                settings=quiet,
            )
        except (wandb.Error, OSError) as problem:
            raise UserError(
                f"wandb refuses the run: {last_line(problem)}", "wandb login, or WANDB_MODE=offline"
            ) from None
        self.identity = self._run.id
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def check() -> None:
        """Checks that wandb is installed, and somebody is logged in unless it works offline.

        Raises:
            UserError: if not.
        """
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if online and not os.environ.get("WANDB_API_KEY") and not _wandb().login(prompt=False):
            raise UserError("wandb has no API key", "wandb login, or WANDB_MODE=offline")
        _wandb()

    def record(self, entry: Mapping[str, Any]) -> None:
        self._run.log({"step": entry["step"], **scalars(entry)})

    def finish(self, summary: Mapping[str, float]) -> None:
        self._run.summary.update(dict(summary))

    def close(self, *, failed: bool) -> None:
        try:
            for file in self._tracked.files:
                self._run.save(str(file), base_path=str(self._tracked.path), policy="now")
            self._run.finish(exit_code=int(failed))
        except Exception as problem:  # of any library below wandb
            warn(f"wandb did not get everything: {last_line(problem)}")
