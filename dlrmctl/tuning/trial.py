"""One trial of a search: a training that reports its evaluations to the study, on all ranks."""

from pathlib import Path
from typing import Any

from dlrmctl.ranks.group import process_group
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.names import named_after_data
from dlrmctl.settings.config import resolve
from dlrmctl.training.step import NotFiniteError
from dlrmctl.training.train import TrialWatch, train
from dlrmctl.tuning.study import open_optuna


def train_trial_on_rank(
    settings: dict[str, Any], run_dir: str, *, study: dict[str, Any], trial: int, title: str, beside: str
) -> dict[str, Any]:
    """Joins the process group and trains a trial; rank 0 reports to the study.

    Args:
        settings: see `Config.to_dict`.
        study: arguments of `open_optuna`.
        trial: identity of the trial in the storage.
        title, beside: shown with the progress.

    Returns:
        {"score": the lowest of its evaluations, "metric": "ne" or "log_loss", "evaluations": their number,
        "ended_early": whether the pruner ended it, "diverged": the message of a loss that is not finite, or None}.
    """
    config = resolve(settings, {}, file_name="settings")
    scores: list[float] = []
    with process_group(config.train.device, timeout_seconds=config.train.timeout) as ranks:
        config = config.on(ranks.world_size)
        run = RunDirectory(Path(run_dir), writes=ranks.is_main)
        ends = reporter(study, trial, scores) if ranks.is_main else _never
        watch = TrialWatch(title, beside, ends)
        found: dict[str, Any] = {"metric": "ne", "ended_early": False, "diverged": None}
        try:
            results = train(named_after_data(config), run, ranks, resume=False, watch=watch)
            found["ended_early"] = results["ended_early"]
            found["metric"] = "log_loss" if results["validation"].get("ne") is None else "ne"
        except NotFiniteError as problem:
            found["diverged"] = problem.message
    return {**found, "score": min(scores, default=None), "evaluations": len(scores)}


def reporter(study: dict[str, Any], trial: int, scores: list[float]) -> Any:
    """A function that reports the best score so far after each evaluation, and returns whether to end the trial."""
    import optuna

    opened = open_optuna(**study)
    opened.sampler = optuna.samplers.RandomSampler()  # nothing is sampled here
    present = optuna.trial.Trial(opened, trial)

    def ends(score: float) -> bool:
        scores.append(score)
        present.report(min(scores), len(scores))
        return bool(present.should_prune())  # NumPy's for some pruners

    return ends


def _never(score: float) -> bool:
    return False
