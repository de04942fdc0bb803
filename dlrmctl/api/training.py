"""Training from Python."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dlrmctl.datasets.prepare import Prepared
from dlrmctl.errors import UserError
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.typed import refuse_missing_store
from dlrmctl.training.run import run_training


@dataclass(frozen=True)
class Run:
    """A run that has finished.

    Attributes:
        path: its directory; `dlrmctl` commands take it.
        steps: number of steps.
        best_step: step of the checkpoint that was tested.
        validation, test: its metrics by name, such as "log_loss", "ne" and "auc"; the standard error of each is that
            name with "_se". None for a split without rows.
        advice: what might give a better model, if the numbers say so.
    """

    path: Path
    steps: int
    best_step: int | None
    validation: Mapping[str, Any] | None
    test: Mapping[str, Any] | None
    advice: str | None

    @property
    def config(self) -> Config:
        """The settings, with what followed from the data."""
        return resolve(RunDirectory(self.path, writes=False).settings(), {})


def train(
    config: Config | None = None,
    *,
    data: str | Path | Prepared | None = None,
    run_dir: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    nproc: int = 1,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Run:
    """Trains a model and evaluates its best checkpoint, as `dlrmctl train` does.

    Args:
        config: settings to start from. Default: the default settings, or with `resume` those of the run.
        data: a store, see `prepare`.
        run_dir: directory of the run. Default: runs/ and a name after data, tables and time.
        resume: whether to continue the run in `run_dir`; "auto": if there is one.
        nproc: number of ranks on this machine.
        tables: settings of single tables: name or pattern -> setting -> value.
        settings: any setting by name, such as `batch_size=512` or `embedding="qr"`.

    Returns:
        The run, with its metrics.

    Raises:
        UserError, DataError: for a mistake that you can fix, with its hint.
        Interrupted: if a signal ended the training; its state is in the run directory.
    """
    if data is not None:
        path = data.path if isinstance(data, Prepared) else data
        refuse_missing_store(path)
        settings["path"] = str(path)
    if resume is True:
        if config is not None or run_dir is None:
            raise UserError("resume needs run_dir, and no config: a run is resumed with its own settings")
        config = resolve(RunDirectory(Path(run_dir), writes=False).settings(), {})
    if settings or tables:
        config = (config or Config()).change(**settings)
        config = replace(
            config, tables={**config.tables, **{name: dict(values) for name, values in (tables or {}).items()}}
        )
    result = run_training(config, run_dir=run_dir, resume=resume, nproc=nproc)
    return Run(
        Path(result["run"]),
        result["steps"],
        result["best_step"],
        result["validation"],
        result["test"],
        result.get("advice"),
    )
