"""Searches for better settings, and compares the best with the default (`dlrmctl tune`).

Trials are judged on the validation split and never see the test split. At the end, the best and the default settings
are trained with several new seeds, and compared on the test split once.
"""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.console.console import finite, notice, output, print_table, say
from dlrmctl.console.pictures import check_picture
from dlrmctl.console.text import METRICS, counted, number_text
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import check_scratch, held_lock, write_whole
from dlrmctl.datasets.open import open_source, refuse_equal_labels, refuse_equal_validation_labels
from dlrmctl.errors import Interrupted, UserError
from dlrmctl.ranks.launch import launch_environment, run_on_ranks
from dlrmctl.ranks.process import configure
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.names import named_after_data
from dlrmctl.rundir.records import read_record
from dlrmctl.rundir.seeds import SeedRuns, finished_runs
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.setting import shown
from dlrmctl.settings.toml import write_settings
from dlrmctl.training.seeds import resume_seeds, show_seeds, train_seeds
from dlrmctl.tuning.space import DEFAULT, SearchSpace, default_space
from dlrmctl.tuning.study import Claim, Study, TrialRecord, best_of

_MOST_FAILURES = 3  # in a row, before the search ends
_DEFAULT = "default"  # directory of the default settings' runs in the final comparison
_COMPARED_ELSEWHERE = "another process compares the best settings with the default"


@dataclass(frozen=True)
class Search:
    """The options of a search.

    Attributes:
        trials: of the whole study; None for no limit.
        minutes: of this process, after which it begins no trial; None for no limit.
        pruner: "median", "asha" or "none".
        storage: URL for Optuna, "journal", or None for SQLite in the study's directory.
        seeds: number of new seeds of the final comparison; 0 for none.
        plot: file of the picture; None for none.
        nproc: number of ranks of a training.
    """

    trials: int | None
    minutes: float | None
    pruner: str
    storage: str | None
    seeds: int
    plot: Path | None
    nproc: int


def tune(
    config: Config, space: SearchSpace | None, directory: Path | None, search: Search, *, fixed: Collection[str] = ()
) -> dict[str, Any]:
    """Runs a search, or continues it, and compares its best settings with the default.

    Args:
        config: the default settings.
        space: what is searched; None for `default_space`.
        directory: of the study; None for a name made from that of the data.
        fixed: settings that the default space omits.

    Returns:
        The result, as in results.json.

    Raises:
        UserError, DataError: for mistakes that the user can fix.
        Interrupted, KeyboardInterrupt: after a signal; the same command continues.
    """
    configure()
    check_scratch()
    if launch_environment().from_launcher:
        raise UserError("tune cannot run under torchrun or another launcher", "--nproc N starts the ranks of a trial")
    if search.plot is not None:
        check_picture(search.plot)
    notice("opening the data")
    config = named_after_data(config)
    source = open_source(config.data)
    if not source.num_examples("validation"):
        raise UserError(
            "the data has no validation rows, and trials are compared on them", "prepare it again with some"
        )
    refuse_equal_labels(source)
    refuse_equal_validation_labels(source, "trials cannot be compared on them", "prepare the data again with more rows")
    config = config.fitted(source.num_examples("train"), search.nproc)
    if space is None:
        space = default_space(config, max((table.rows for table in source.schema.sparse), default=0), fixed)
    directory = directory or Path("studies") / config.data.dataset
    study = Study(directory, space, config, search.storage, search.pruner)
    with study.opened(source.fingerprint()):
        if search.seeds and (group := SeedRuns.open(directory / _DEFAULT)) is not None:
            _refuse_other_seeds(group, search)
        _run_trials(study, search)
        return _concluded(study, search)


def _run_trials(study: Study, search: Search) -> None:
    began, failures = time.monotonic(), 0
    say(f"study {study.directory}: {_so_far(study, search)}")
    while search.minutes is None or time.monotonic() - began < 60 * search.minutes:
        claim = study.claim(search.trials)
        if claim is None:
            break
        try:
            _run_trial(study, claim, search)
            failures = 0
        except (Interrupted, KeyboardInterrupt):
            study.repeat(claim)
            say(f"the same command continues {study.directory} and repeats trial {claim.number}")
            raise
        except (UserError, DataError) as problem:
            if claim.is_default:  # nothing can be compared with it, and other settings would fail, too
                study.repeat(claim)
                raise
            study.fail(claim, problem.message)
            failures += 1
            if failures == _MOST_FAILURES:
                raise
            say(f"trial {claim.number} failed: {problem.message}")


def _run_trial(study: Study, claim: Claim, search: Search) -> None:
    trials = study.trials()
    best, begun = best_of(trials), sum(trial.state != "repeated" for trial in trials)
    total = f" of {search.trials}" if search.trials else ""
    found = run_on_ranks(
        "dlrmctl.tuning.trial:train_trial_on_rank",
        {
            "settings": study.config_of(claim).to_dict(derived=False),
            "run_dir": str(study.run_of(claim.number)),
            "study": {"where": study.where, "name": study.name, "pruner": study.pruner},
            "trial": claim.key,
            "title": f"trial {claim.number} ({begun}{total})",
            "beside": f"best {number_text(best.score)}" if best else "",
        },
        search.nproc,
    )
    if found["diverged"]:
        study.prune(claim, found["diverged"])
        say(f"trial {claim.number} diverged: {found['diverged']}")
        return
    if found["score"] is None:
        raise UserError("the trial ended without an evaluation", "--evaluations N evaluates more often")
    text = f"trial {claim.number}  {METRICS[found['metric']]} {number_text(found['score'])}"
    if found["ended_early"]:
        study.prune(claim)
        say(f"{text}  pruned after {counted(found['evaluations'], 'evaluation')}")
        return
    study.complete(claim, found["score"], found["metric"])
    improved = best is None or best.score is None or found["score"] < best.score
    if improved:
        write_settings(study.directory / "best.toml", study.config_of(claim).to_dict(derived=False))
    what = "default settings" if claim.is_default else _in_words(claim.values)
    say(f"{text}{'  best so far' if improved and best else ''}  {what}")


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value_text(value)}" for name, value in values.items())


def _value_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else shown(value)


def _so_far(study: Study, search: Search) -> str:
    trials = study.trials()
    counts = _counts(trials)
    done = sum(counts.values())
    goal = counted(search.trials, "trial") if search.trials else f"{search.minutes:g} minutes of trials"
    best = best_of(trials)
    text = f", best {number_text(best.score)} in trial {best.number}" if best else ""
    return f"{done} of {goal}{text}" if search.trials else f"{counted(done, 'trial')} so far, {goal}{text}"


def _counts(trials: list[TrialRecord]) -> dict[str, int]:
    states = ("complete", "pruned", "failed", "running")
    return {state: sum(trial.state == state for trial in trials) for state in states}


def _concluded(study: Study, search: Search) -> dict[str, Any]:
    """The result of the search so far, with the final comparison if this process is the last."""
    trials = study.trials()
    best = best_of(trials)
    if best is None:
        raise UserError(f"no trial of {study.directory} is complete yet", "--trials or --minutes allows more")
    default = next((trial for trial in trials if trial.is_default and trial.state == "complete"), None)
    importances = study.importances()
    result: dict[str, Any] = {
        "study": str(study.directory),
        "metric": study.metric,
        "counts": _counts(trials),
        "default": default
        and {
            "trial": default.number,
            "validation": default.score,
            "settings": study.space.defaults(study.config),
        },
        "best": {"trial": best.number, "validation": best.score, "settings": dict(best.values)},
        "settings_file": str(study.directory / "best.toml"),
        "importances": importances,
        "trials": [vars(trial) for trial in trials],
        "comparison": None,
        "final": None,
    }
    write_settings(study.directory / "best.toml", study.config_of(best).to_dict(derived=False))
    if search.plot is not None:
        from dlrmctl.tuning.pictures import draw_study

        title = f"{study.directory.name}: {counted(len(trials), 'trial')}"
        draw_study(trials, importances, study.metric, title, search.plot)
    if others := study.running():
        say(f"{counted(others, 'trial')} in other processes; the last process to end compares best and default")
    elif search.seeds:
        result |= _compared(study, best, search)
    write_whole(study.directory / "results.json", (json.dumps(finite(result), indent=2) + "\n").encode())
    return result


def _compared(study: Study, best: TrialRecord, search: Search) -> dict[str, Any]:
    """Trains the default and the best settings with new seeds, and compares them on the test split."""
    try:
        with held_lock(study.directory / "final.lock", _COMPARED_ELSEWHERE, ""):
            sides = {"default": study.config, **({} if best.is_default else {"best": study.config_of(best)})}
            paths = {"default": study.directory / _DEFAULT, "best": study.directory / f"best-{best.number}"}
            final = {}
            for side, config in sides.items():
                say(f"{side} settings with {counted(search.seeds, 'new seed')}")
                final[side] = _trained(config.change(seed=config.train.seed + 1), paths[side], search)
            found: dict[str, Any] = {"final": final}
            if "best" in final:
                found["comparison"] = _comparison([paths["default"], paths["best"]], search.nproc)
            return found
    except DataError as problem:
        if problem.message != _COMPARED_ELSEWHERE:
            raise
        say(_COMPARED_ELSEWHERE)
        return {}


def _trained(config: Config, path: Path, search: Search) -> dict[str, Any]:
    group = SeedRuns.open(path)
    if group is None:
        return train_seeds(config, search.seeds, run_dir=path, nproc=search.nproc)
    _refuse_other_seeds(group, search)
    results = path / "results.json"
    if results.exists():
        return read_record(results, lambda values: dict(values.entries), f"remove it, then --resume {path}")
    return resume_seeds(group, resolve(group.settings(), {}), nproc=search.nproc)


def _refuse_other_seeds(group: SeedRuns, search: Search) -> None:
    """Refuses to compare settings with another number of seeds than an earlier comparison of the study had."""
    if group.number != search.seeds:
        raise UserError(
            f"{group.path} has {counted(group.number, 'seed')}, not {search.seeds}", f"--seeds {group.number}"
        )


def _comparison(paths: list[Path], nproc: int) -> dict[str, Any]:
    runs = [finished_runs(path) for path in paths]
    arguments = {
        "settings": [[_scoring_settings(run) for run in side] for side in runs],
        "runs": [[str(run) for run in side] for side in runs],
        "names": [str(path) for path in paths],
        "checkpoint": "best",
        "split": "test",
    }
    found: dict[str, Any] = run_on_ranks("dlrmctl.scoring.compare:compare_on_rank", arguments, nproc)
    return found


def _scoring_settings(run: Path) -> dict[str, Any]:
    return resolve(RunDirectory(run, writes=False).settings(), {}).for_scoring().to_dict()


def show_tuning(result: Mapping[str, Any]) -> None:
    """Prints the best settings beside the default, and the comparison on the test split."""
    best, default = result["best"], result["default"]
    counts = ", ".join(f"{number} {state}" for state, number in result["counts"].items() if number)
    columns = ["", *(["default"] if default else []), f"trial {best['trial']}"]
    scores = [*([number_text(default["validation"])] if default else []), number_text(best["validation"])]
    rows = [[f"validation {METRICS[result['metric']]}", *scores]]
    for name, value in best["settings"].items():
        rows.append(
            [name, *([_value_text(default["settings"].get(name, DEFAULT))] if default else []), _value_text(value)]
        )
    print_table(f"{result['study']}: {counts}", columns, rows)
    if default and best["trial"] == default["trial"]:
        output.print("No trial was better than the default settings on the validation split.")
        if result["final"]:
            show_seeds(result["final"]["default"])
    if result["comparison"]:
        from dlrmctl.scoring.compare import show_comparison

        show_comparison(result["comparison"])
    output.print(f"train with the best settings: dlrmctl train --config {result['settings_file']}")
