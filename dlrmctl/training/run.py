"""Training in one call, on ranks of this machine or of a launcher.

Does not load torch, which only the ranks need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlrmctl.assembly.storage import refuse_without_gpu
from dlrmctl.console.console import warn
from dlrmctl.console.text import few
from dlrmctl.data.files import check_scratch
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import needs_launch, run_on_ranks
from dlrmctl.ranks.process import configure
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import WIDE_LR, Config, DataSettings, resolve
from dlrmctl.settings.setting import shown

if TYPE_CHECKING:
    from dlrmctl.data.source import Source


def run_training(
    config: Config | None = None,
    *,
    run_dir: Path | str | None = None,
    resume: bool | Literal["auto"] = False,
    nproc: int = 1,
    source: "Source | None" = None,
    print_plan: bool = False,
    command_line: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains a model in a run directory and evaluates the best checkpoint on the test split.

    Under torchrun, every rank must call it. It can run in any thread; signals are handled in the main thread.

    Args:
        config: the settings. Default: those of the resumed run, otherwise the default settings.
        run_dir: directory of the run. Default: named after data, tables and time, or after the job of torchrun or
            Slurm. An existing run of this job with these settings is continued.
        resume: whether to continue the run in `run_dir` from its newest checkpoint; "auto": if there is one, with its
            own settings.
        nproc: number of ranks on this machine.
        source: data to use instead of that in the settings; for a single process.
        print_plan: whether to print the placement of the tables.
        command_line: arguments to record in environment.json.

    Returns:
        {"run", "steps", "best_step", "validation": metrics, "test": metrics, "advice": one line or None}; the same on
        every rank.

    Raises:
        UserError, DataError: for mistakes that the user can fix.
        Interrupted: after SIGTERM or Ctrl-C, with the state saved.
    """
    configure()
    if resume and run_dir is None:
        raise UserError("resume needs the directory of the run", "run_dir=...")
    if config is None:
        run = RunDirectory(Path(str(run_dir)), writes=False)
        given = resume is True or (resume == "auto" and run.settings_file.is_file())
        config = resolve(run.settings(), {}) if given else Config()
    if config.baseline is not None:
        raise UserError(
            f"{run_dir or 'these settings'}: the settings of a baseline, which is fitted as a whole",
            "`dlrmctl baseline` fits one; `dlrmctl train` trains a DLRM",
        )
    config = config.on(nproc)  # checks the batch before ranks are started
    refuse_without_gpu(config, config.train.device)
    check_scratch()
    arguments: dict[str, Any] = {
        "settings": config.to_dict(derived=False),
        "run_dir": None if run_dir is None else str(run_dir),
        "resume": resume,
        "print_plan": print_plan,
        "command_line": list(command_line),
    }
    if source is not None:
        if needs_launch(nproc):
            raise UserError(f"nproc = {nproc} cannot be used with a source", "use nproc=1 or torchrun")
        arguments["source"] = source
    results: dict[str, Any] = run_on_ranks("dlrmctl.training.train:train_on_rank", arguments, nproc)
    return results


def settings_to_start_from(path: Path, file: Mapping[str, Any], flags: Mapping[str, str]) -> dict[str, Any]:
    """Returns the sections of a settings file, completed by those of the run to start from (`--init-from`).

    Args:
        path: the run, or a compressed model.
        file: sections as read from TOML.
        flags: typed flags; the data of the run is replaced as a whole if they or the file name other data.

    Raises:
        UserError: if it is not a run.
    """
    of_run = RunDirectory(path, writes=False).settings()
    if "baseline" in of_run:
        raise UserError(f"{path} is a baseline: a training starts from a DLRM", "choose another run for --init-from")
    if "data" in file or flags.keys() & {item.name for item in fields(DataSettings)}:
        of_run.pop("data", None)
    optim, chosen = of_run.get("optim", {}), {**file.get("optim", {}), **flags}
    if chosen.get("dense_optimizer", optim.get("dense_optimizer")) != optim.get("dense_optimizer"):
        optim.pop("dense_lr", None)  # a rate is of its optimizer
    if optim.pop("wide_start", None) == "fitted" and optim.get("wide_lr") == WIDE_LR["fitted"]:
        optim.pop("wide_lr")  # the weights of new ids start at 0
    of_run.get("embeddings", {}).pop("grown", None)  # read from the checkpoint
    for name in ("refit_dense", "init_embeddings"):
        of_run.get("train", {}).pop(name, None)
    return {name: {**of_run.get(name, {}), **file.get(name, {})} for name in (*of_run, *file)}


def warn_of_kept_settings(run_dir: Path | None, config: Config, flags: Mapping[str, str]) -> None:
    """Warns of typed settings from which a run differs that exists and keeps its own; does nothing if there is none.

    Args:
        config: the settings as typed.
        flags: the names of typed settings are its keys.
    """
    run = None if run_dir is None else RunDirectory(run_dir, writes=False)
    if run is None or not run.settings_file.is_file():
        return
    kept, differing = resolve(run.settings(), {}), []
    for section in fields(Config):
        of_run, typed = getattr(kept, section.name), getattr(config, section.name)
        for item in fields(typed) if is_dataclass(typed) and is_dataclass(of_run) else ():
            ours, theirs = getattr(typed, item.name), getattr(of_run, item.name)
            # None and "auto" follow from the data, and a run has what followed.
            if item.name in flags and ours not in (None, "auto", theirs):
                differing.append(f"{section.name}.{item.name} = {shown(theirs)} (not {shown(ours)})")
    if differing:
        warn(f"{run_dir} exists and keeps its settings: {few(differing)}")
