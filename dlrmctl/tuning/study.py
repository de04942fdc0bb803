"""The trials of a search, kept by Optuna so that several processes share them and a killed search continues.

STUDY/study.json     what is searched: another search in the same directory is refused
      study.db       the trials (SQLite), unless they are kept elsewhere
      trial-7/       the run of a trial, without checkpoints
      workers/       one locked file for each process; a trial whose process has died is tried again
      best.toml      the best settings so far, for `train --config`
      results.json   the result of the search

Trials are numbered from 0; trial 0 has the default settings.
"""

import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import held_lock, io_errors, write_whole
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.rundir.records import read_record
from dlrmctl.settings.config import Config
from dlrmctl.tuning.space import Parameter, SearchSpace, Value

if TYPE_CHECKING:
    import optuna

PRUNERS = ("median", "asha", "none")
JOURNAL = "journal"
_FORMAT = "dlrmctl-study/1"
_LOCK = "study.lock"
_LOCK_SECONDS = 120.0
_BUSY = "the study is locked by another process"
_UNPRUNED_EVALUATIONS = 1  # the first evaluation of a trial says little
_STARTUP_TRIALS = 5
_TOP = 0.25  # share of the trials whose common settings count as important
_FEWEST_FOR_IMPORTANCES = 4


@dataclass(frozen=True)
class Claim:
    """A trial that this process trains.

    Attributes:
        number: of the trial.
        key: its identity in the storage.
        values: of the parameters; those of a trial with the default settings change nothing.
    """

    number: int
    key: int
    values: Mapping[str, Value]
    is_default: bool


@dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended, or is running.

    Attributes:
        state: "complete", "pruned", "failed", "repeated" (it was interrupted and is tried again) or "running".
        score: lowest validation NE, or log loss if NE is not defined; None without an evaluation.
        problem: why it failed or diverged.
    """

    number: int
    state: str
    score: float | None
    values: Mapping[str, Value]
    is_default: bool = False
    seconds: float | None = None
    problem: str | None = None


@dataclass
class Study:
    """An open study of this process.

    Args:
        directory: of the study.
        space: what is searched.
        config: the default settings.
        storage: URL for Optuna, "journal", or None for SQLite in the directory.
        pruner: one of `PRUNERS`.
    """

    directory: Path
    space: SearchSpace
    config: Config
    storage: str | None
    pruner: str
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")

    @contextmanager
    def opened(self, data: str) -> Iterator[None]:
        """Creates the study, or opens it to continue it; registers this process for the block.

        Args:
            data: fingerprint of the data.

        Raises:
            UserError, DataError: if the directory has something else or another study, or cannot be written.
        """
        definition = self._definition(data)
        self._refuse_other(definition)
        with io_errors(self.directory, "write"):
            (self.directory / "workers").mkdir(parents=True, exist_ok=True)
        own = self.directory / "workers" / self.worker
        with ExitStack() as held:
            with self._locked():  # so that no process takes a new file for that of a dead one
                held.enter_context(held_lock(own, _BUSY, ""))
                self._refuse_other(definition)
                if not self.file.exists():
                    content = {"format": _FORMAT, **definition}
                    write_whole(self.file, (json.dumps(content, indent=2) + "\n").encode())
                self._open(json.dumps(definition, sort_keys=True))
            yield
            own.unlink(missing_ok=True)  # after an error it stays: a trial that was running is found by it

    @property
    def file(self) -> Path:
        return self.directory / "study.json"

    def _definition(self, data: str) -> dict[str, Any]:
        settings = self.config.to_dict(derived=False)
        del settings["data"]  # `data` identifies it, wherever it lies
        content = {"space": self.space.to_dict(), "settings": settings, "data": data, "pruner": self.pruner}
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain

    def _refuse_other(self, definition: Mapping[str, Any]) -> None:
        if not self.file.exists():
            present = {*os.listdir(self.directory)} if self.directory.exists() else set()
            if present - {"workers"} and _LOCK not in present:  # with a lock, another process is creating it
                raise UserError(f"{self.directory} already exists and is not a study", "choose another: --study DIR")
            return
        self._compare(read_record(self.file, _definition_of), definition)

    def _compare(self, present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuses to continue a study of something else, naming what differs.

        Raises:
            UserError: if they differ.
        """
        hint = "continue it with what it was started with, or choose another directory: --study DIR"
        others = {
            "space": "another search space",
            "settings": "other settings",
            "data": "other data",
            "pruner": "another pruner",
        }
        for key, other in others.items():
            if present[key] != wanted[key]:
                where = "" if isinstance(wanted[key], str) else f": {_first_difference(present[key], wanted[key])}"
                raise UserError(f"{self.directory} is a study with {other}{where}", hint)

    def _open(self, definition: str) -> None:
        """Opens Optuna's study; a new one begins with the default settings."""
        import optuna

        study = open_optuna(self.where, self.name, self.pruner, create=True)
        if (stored := study.user_attrs.get("definition")) is None:
            study.set_user_attr("definition", definition)
            study.enqueue_trial(self.space.defaults(self.config), user_attrs={"default": True})
        elif stored != definition:
            self._compare(json.loads(stored), json.loads(definition))
        self._study: optuna.Study = study

    @property
    def where(self) -> str:
        """The storage, for `open_optuna`."""
        if self.storage == JOURNAL:
            return f"{JOURNAL}:{self.directory.resolve() / 'journal.log'}"
        return self.storage or f"sqlite:///{self.directory.resolve() / 'study.db'}"

    @property
    def name(self) -> str:
        """The name in the storage."""
        return self.directory.resolve().name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps the other processes of this directory waiting during the block."""
        deadline = time.monotonic() + _LOCK_SECONDS
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(held_lock(self.directory / _LOCK, _BUSY, "try again"))
                    break
                except DataError as problem:
                    if problem.message != _BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield

    def claim(self, most: int | None) -> Claim | None:
        """Begins a trial; None if the study already has `most`."""
        import optuna

        with self._locked():
            self._retry_dead()
            present = self.trials()
            if most is not None and sum(trial.state != "repeated" for trial in present) >= most:
                return None
            # A seed for each trial: processes do not draw the same settings, and a search can be repeated.
            seed = (self.config.train.seed + 7919 * len(self._study.get_trials(deepcopy=False))) % (1 << 32)
            with _quiet():
                self._study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
                trial = self._study.ask()
                trial.set_user_attr("worker", self.worker)
                is_default = bool(trial.user_attrs.get("default"))
                if is_default:
                    fixed = self.space.defaults(self.config)
                    values = {p.name: _suggested(trial, p) for p in self.space.parameters if p.name in fixed}
                else:
                    values = self.space.choose(self.config, lambda parameter: _suggested(trial, parameter))
        return Claim(trial.number, trial._trial_id, values, is_default)

    def config_of(self, trial: Claim | TrialRecord) -> Config:
        """The settings of a trial.

        Raises:
            UserError: if they contradict each other.
        """
        return self.config if trial.is_default else self.space.applied(self.config, trial.values)

    def run_of(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.directory / f"trial-{number}"

    @property
    def metric(self) -> str:
        """What the scores are: "ne", or "log_loss" if NE is not defined."""
        return str(self._study.user_attrs.get("metric", "ne"))

    def complete(self, claim: Claim, score: float, metric: str) -> None:
        """Ends a trial with its score."""
        self._study.set_user_attr("metric", metric)
        self._study.tell(claim.number, score)

    def prune(self, claim: Claim, problem: str | None = None) -> None:
        """Ends a trial that is worse than others, or has diverged (`problem`), which the search then avoids."""
        import optuna

        if problem is not None:
            self._study._storage.set_trial_user_attr(claim.key, "problem", problem)
            self._forget(claim.number)
        self._study.tell(claim.number, state=optuna.trial.TrialState.PRUNED)

    def fail(self, claim: Claim, problem: str) -> None:
        """Ends a trial that cannot be trained."""
        import optuna

        self._study._storage.set_trial_user_attr(claim.key, "problem", problem)
        self._study.tell(claim.number, state=optuna.trial.TrialState.FAIL)
        self._forget(claim.number)

    def repeat(self, claim: Claim) -> None:
        """Ends a trial that was interrupted, and queues its settings."""
        with self._locked():
            trial = next(t for t in self._study.get_trials(deepcopy=False) if t.number == claim.number)
            self._queue_again(trial)

    def running(self) -> int:
        """The number of trials that are being trained."""
        with self._locked():
            self._retry_dead()
            return sum(trial.state == "running" for trial in self.trials())

    def _retry_dead(self) -> None:
        """Queues the settings of trials whose process has died; after a second time, the trial has failed."""
        import optuna

        workers = {path: self._is_alive(path.name) for path in (self.directory / "workers").iterdir()}
        alone = sum(workers.values()) == 1  # this process
        for trial in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            worker = trial.user_attrs.get("worker")
            # A process that dies between the two writes of `claim` leaves a trial without a name.
            dead = alone if worker is None else not self._is_alive(worker)
            if not dead:
                continue
            if trial.user_attrs.get("died"):
                self._study._storage.set_trial_user_attr(trial._trial_id, "problem", "its process died twice")
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                self._forget(trial.number)
            else:
                self._queue_again(trial, died=True)
        for path, alive in workers.items():
            if not alive:
                path.unlink(missing_ok=True)

    def _is_alive(self, worker: str) -> bool:
        """Whether a process holds the lock of its file. A process without a file is on a machine with another disk."""
        path = self.directory / "workers" / worker
        if worker == self.worker or not path.is_file():
            return True
        try:
            with held_lock(path, _BUSY, ""):
                return False
        except DataError:
            return True

    def _queue_again(self, trial: "optuna.trial.FrozenTrial", *, died: bool = False) -> None:
        import optuna

        attributes = {"default": True} if trial.user_attrs.get("default") else {}
        self._study.enqueue_trial(dict(trial.params), user_attrs=attributes | ({"died": True} if died else {}))
        self._study._storage.set_trial_user_attr(trial._trial_id, "repeated", True)
        self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        self._forget(trial.number)

    def _forget(self, number: int) -> None:
        """Removes the run of a trial that has no result."""
        shutil.rmtree(self.run_of(number), ignore_errors=True)

    def trials(self) -> list[TrialRecord]:
        """All trials that were begun, by number."""
        import optuna

        states = optuna.trial.TrialState
        words = {states.COMPLETE: "complete", states.PRUNED: "pruned", states.FAIL: "failed", states.RUNNING: "running"}
        return [
            TrialRecord(
                trial.number,
                "repeated" if trial.user_attrs.get("repeated") else words[trial.state],
                trial.value if trial.value is not None else min(trial.intermediate_values.values(), default=None),
                dict(trial.params),
                bool(trial.user_attrs.get("default")),
                trial.duration.total_seconds() if trial.duration else None,
                trial.user_attrs.get("problem"),
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state in words
        ]

    def importances(self) -> dict[str, float]:
        """How much the settings differ between the best complete trials and all of them; the sum is 1.

        Empty with few complete trials.

        Source: Watanabe, Bansal and Hutter, PED-ANOVA, arXiv:2304.10255.
        """
        import optuna

        if sum(trial.state == "complete" for trial in self.trials()) < _FEWEST_FOR_IMPORTANCES:
            return {}
        with _quiet():
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_TOP)
            found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}


def best_of(trials: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the lowest score; of equal ones, the first."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
    return min(complete, key=lambda trial: (trial.score, trial.number), default=None)


def require_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs Optuna, which is not installed", "pip install 'optuna>=5,<6'")


def open_optuna(where: str, name: str, pruner: str, *, create: bool = False) -> "optuna.Study":
    """Opens a study in its storage.

    Args:
        where: a URL, or "journal:" and a path.
        name: of the study in the storage.
        pruner: one of `PRUNERS`.
        create: whether to create it if it does not exist.

    Raises:
        UserError: if the storage cannot be opened.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {
        "median": optuna.pruners.MedianPruner(
            n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=_UNPRUNED_EVALUATIONS + 1
        ),
        "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        "none": optuna.pruners.NopPruner(),
    }
    kind, _, path = where.partition(":")
    try:
        with _quiet():
            storage: Any
            if kind == JOURNAL:
                storage = optuna.storages.JournalStorage(JournalFileBackend(path))
            else:
                # Processes of a study write to SQLite in turn.
                wait = {"connect_args": {"timeout": 60}} if kind == "sqlite" else None
                storage = optuna.storages.RDBStorage(where, engine_kwargs=wait)
            if create:
                return optuna.create_study(
                    study_name=name, storage=storage, pruner=pruners[pruner], load_if_exists=True, direction="minimize"
                )
            return optuna.load_study(study_name=name, storage=storage, pruner=pruners[pruner])
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, OSError, RuntimeError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        place = path.lstrip("/") if kind == "sqlite" else kind  # other URLs may have passwords
        reason = re.sub(r"\w+://\S+", "URL", reason)
        raise UserError(f"the storage of the study ({place}) cannot be opened: {reason[:200]}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Optuna's warnings of features that may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _suggested(trial: "optuna.Trial", parameter: Parameter) -> Value:
    if parameter.choices:
        chosen: Any = trial.suggest_categorical(parameter.name, parameter.choices)
        return chosen  # one of the choices
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.whole:
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log)


def _definition_of(values: Values) -> dict[str, Any]:
    values.require("format", _FORMAT)
    inner = {key: dict(values.inner(key).entries) for key in ("space", "settings")}
    return {**inner, "data": values.text("data"), "pruner": values.text("pruner")}


def _first_difference(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Names the first entry that differs, in inner objects as section.name."""
    for name in sorted(present.keys() | wanted.keys()):
        before, now = present.get(name), wanted.get(name)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict) and "section" not in before:
                return f"{name}.{_first_difference(before, now)}"
            return f"{name} {'is new' if before is None else 'is missing' if now is None else 'differs'}"
    return ""
