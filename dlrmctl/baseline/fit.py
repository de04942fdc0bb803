"""Fits a baseline on this rank: examples -> path of penalties -> weights -> metrics -> run directory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrmctl.assembly.baseline import build_baseline
from dlrmctl.baseline.examples import RowMaker, SplitExamples
from dlrmctl.baseline.path import PathPoint, follow_path
from dlrmctl.baseline.solvers import solver_for
from dlrmctl.console.console import say
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import counted
from dlrmctl.data.source import SPLITS, Source
from dlrmctl.datasets.open import open_reader, open_source, refuse_equal_labels, refuse_equal_validation_labels
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.models.logistic import LinearLogits
from dlrmctl.optim.convex.objective import LogisticRegression, OneSidedFeatureError, RowRanks
from dlrmctl.optim.convex.solution import Iteration
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.checkpoint import Checkpoints
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.names import named_after_data, new_name
from dlrmctl.rundir.state import RunState
from dlrmctl.scoring.metrics import Metrics, StreamingMetrics, short_text, with_optimum
from dlrmctl.scoring.scores import evaluate
from dlrmctl.settings.baseline import BaselineSettings
from dlrmctl.settings.config import Config, resolve


def fit_on_rank(settings: dict[str, Any], run_dir: str | None, *, command_line: list[str]) -> dict[str, Any]:
    """Joins the process group and fits; `run_baseline` calls it on every rank.

    Args:
        settings: see `Config.to_dict`.
        run_dir: see `run_baseline`; rank 0 names the directory.
    """
    config = resolve(settings, {}, file_name="settings")
    with process_group("cpu") as ranks:
        config = named_after_data(config)
        path = ranks.broadcast(new_name(config) if run_dir is None else Path(run_dir))
        return fit(config, RunDirectory(path, writes=ranks.is_main), ranks, command_line=command_line)


def fit(config: Config, run: RunDirectory, ranks: Ranks, *, command_line: Sequence[str] = ()) -> dict[str, Any]:
    """Fits the baseline of the settings, and writes the run when it is finished.

    Returns:
        The results; the same on every rank.

    Raises:
        UserError, DataError: for mistakes that the user can fix.
    """
    settings = config.baseline
    assert settings is not None
    source = open_source(config.data)
    _check_splits(source)
    refuse_equal_labels(source)
    if settings.l2 is None:
        refuse_equal_validation_labels(
            source, "no L2 penalty can be chosen on them", "--l2 X fits one penalty; or prepare with more rows"
        )
    config = config.fitted(None, ranks.world_size)
    model = build_baseline(settings, source.features)
    with run.created("choose another --run-dir"), BarDisplay(shown=ranks.is_main) as display:
        fitting = Fitting(settings, config.train.seed, source, model, ranks, display)
        best = fitting.best()
        results = fitting.results(best) | {"run": str(run.path), "data": source.fingerprint()}
        for split in SPLITS:
            display.begin(f"scoring {split}")
            reader = open_reader(config, source, split, ranks, training=False)
            metrics = evaluate(model, reader, ranks, tell=display.advance_to)
            results[split] = with_optimum(metrics.to_dict(), source, split)
        run.keep_features(source.features)
        step = results["best_step"]
        state = RunState(step=step, best_step=step, finished=True)
        checkpoints = Checkpoints(run.checkpoints, ranks)
        checkpoints.save(step, {"model": model.state_dict()}, state.to_state(config, source))
        if ranks.is_main:
            checkpoints.keep(1, step)
        for entry in fitting.entries:
            run.record(entry)
        run.describe(config, ranks.world_size, ranks.device.type, command_line)
        run.write_results(results)
    return results


def _check_splits(source: Source) -> None:
    for split, use in (("train", "to fit"), ("validation", "to choose the L2 penalty"), ("test", "for the results")):
        if not source.num_examples(split):
            raise UserError(f"the {split} split has no examples, which are needed {use}", "prepare more rows")


class Fitting:
    """The examples, the objective and the solver of a baseline.

    Args:
        settings: of the baseline.
        seed: of the order of the examples, and of sketches.
        source: the data.
        model: gets the weights.
        display: shows the progress.
        speaks: whether to print a line for each fit.

    Attributes:
        path: one fit for each penalty, in the order of fitting.
        entries: lines of metrics.jsonl.

    Raises:
        UserError: if there is nothing to fit: one label, or features that are all constant.
    """

    def __init__(
        self,
        settings: BaselineSettings,
        seed: int,
        source: Source,
        model: DLRM,
        ranks: Ranks,
        display: BarDisplay,
        *,
        speaks: bool = True,
    ) -> None:
        self._settings, self._ranks, self._display = settings, ranks, display
        self._speaks = speaks and display.shown
        self._offset = source.features.logit_offset("validation")
        self._make_rows, self._weighted = RowMaker(model), source.schema.weight is not None
        started = time.monotonic()
        display.begin("reading train")
        train = SplitExamples(self._make_rows, source, "train", ranks, seed=seed, tell=display.advance_to)
        display.begin("reading validation")
        self._validation = SplitExamples(
            self._make_rows, source, "validation", ranks, seed=seed, tell=display.advance_to
        )
        self._reading_seconds = time.monotonic() - started
        sharing = RowRanks.of(ranks.group) if ranks.world_size > 1 else None
        self._started = time.monotonic()
        with _fixable():
            try:
                self._objective = LogisticRegression(
                    train, l2=1.0 if settings.l2 is None else settings.l2, ranks=sharing
                )
            except OneSidedFeatureError as problem:
                name = self._make_rows.name_of(problem.feature, source.features)
                others = f", like {counted(problem.count - 1, 'other feature')}" if problem.count > 1 else ""
                raise UserError(
                    f"--l2 0: there is no optimum: {name} occurs with one label only{others}",
                    "give a penalty above 0, or omit --l2",
                ) from None
        self._refuse_constant(model)
        with _fixable():
            self._solver = solver_for(settings, self._objective, ranks)
        self._steps: dict[float, int] = {}
        self._notes: dict[float, list[str]] = {}
        self._passes = 0.0
        self.path: list[PathPoint] = []
        self.entries: list[dict[str, Any]] = []
        if self._speaks:
            kept = "" if train.in_memory else ", read again at every pass: they do not fit in memory"
            say(f"{source.num_examples('train'):,} training examples{kept}, {self._make_rows.num_features:,} features")
            say(f"solver {self._solver.name}, starting at the base rate {self._objective.counts.base_rate:.4f}")

    def best(self) -> PathPoint:
        """Fits the given penalty, or those of a path; stores the weights of the best one in the model."""
        start, l2 = self._objective.start(), self._settings.l2
        found = follow_path(self._fit, start) if l2 is None else self._fit(l2, start)
        if self._speaks:
            for note in self._notes[found.l2]:
                say(f"{self._solver.name}: {note}")
        self._make_rows.store(found.point)
        return found

    def results(self, best: PathPoint) -> dict[str, Any]:
        """Returns what there is to report, besides metrics."""
        return {
            "steps": max(self._steps.values()),
            "best_step": self._steps[best.l2],
            "solver": self._solver.name,
            "l2": best.l2,
            "features": self._make_rows.num_features,
            "passes": self._passes,
            "seconds": {"reading": self._reading_seconds, "fitting": time.monotonic() - self._started},
            "notes": self._notes[best.l2],
            "path": [point.to_dict() for point in self.path],
        }

    def _fit(self, l2: float, start: Tensor) -> PathPoint:
        """Fits one penalty, and scores the validation split."""
        display, number = self._display, len(self.path) + 1
        display.begin(f"fit {number}, l2 {l2:.4g}")
        started = time.monotonic()
        is_limited = self._solver.name != "pb-lbfgs"
        takes_any = "any number of features and ranks" + (", and a penalty of 0" if l2 == 0 else "")
        with _fixable(f"--solver pb-lbfgs takes {takes_any}" if is_limited else None):
            objective = self._objective.with_l2(l2 / self._objective.counts.weight)

            def tell(iteration: Iteration) -> None:
                display.show(
                    f"{iteration.passes:.1f} passes  loss {iteration.value:.4f}  "
                    f"gradient {iteration.gradient_norm:.1e}  {iteration.sample_size:,} rows"
                )

            solution = self._solver.solve(objective, start, tell)
        metrics = self._score(solution.point)
        fitted = PathPoint(
            l2=l2,
            passes=solution.passes,
            iterations=solution.history[-1].number,
            seconds=time.monotonic() - started,
            reason=solution.reason,
            validation=metrics,
            point=solution.point,
        )
        step = max(self._steps.values(), default=0) + fitted.iterations
        self._steps[l2], self._passes = step, self._passes + fitted.passes
        self.path.append(fitted)
        self.entries.append({"kind": "validation", "step": step, **metrics.to_dict(), "l2": l2})
        if self._speaks:
            best = fitted is min(self.path, key=lambda other: other.log_loss)
            mark = "  best so far" if best and self._settings.l2 is None else ""
            passes = f"{fitted.passes:.1f} passes"
            say(f"l2 {l2:<9.4g} {passes:>12}  validation  {short_text(metrics)}{mark}")
        self._notes[l2] = solution.notes
        return fitted

    def _score(self, point: Tensor) -> Metrics:
        """Returns the metrics on the validation split."""
        # Groups do not matter for the choice of a penalty.
        weighted = self._weighted
        metrics = StreamingMetrics(torch.device("cpu"), self._ranks.world_size, weighted=weighted)
        for part in self._validation.read(0, self._validation.num_rows):
            logits_N = part.rows.times(point[:-1, None])[:, 0] + point[-1] + self._offset
            metrics.update(logits_N, part.labels, part.weights)
        return metrics.compute(self._ranks.group)

    def _refuse_constant(self, model: DLRM) -> None:
        """Refuses data whose features are all constant.

        Raises:
            UserError: if they are.
        """
        square_D = self._objective.counts.square_D
        is_raw = isinstance(model.dense.dense, LinearLogits)
        scaled, counts = square_D.split([self._make_rows.num_dense, len(square_D) - self._make_rows.num_dense])
        constant = (counts == 0) | (counts == 1)
        # A normalized feature is 0 if it is constant.
        constant_dense = scaled == 0 if is_raw else (scaled == 0) | (scaled == 1)
        if bool(constant.all()) and bool(constant_dense.all()):
            raise UserError(
                "all features are constant on the training split: there is nothing to fit",
                "check the columns with `dlrmctl data show`",
            )


@contextmanager
def _fixable(hint: str | None = None) -> Iterator[None]:
    """Reports what the solvers refuse as a mistake that the user can fix."""
    try:
        yield
    except ValueError as problem:
        raise UserError(str(problem), hint) from None
