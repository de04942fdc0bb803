"""Measures the fit of a baseline beside other programs, and solvers against each other (`dlrmctl bench baseline`).

All programs fit the same rows, already in memory. scikit-learn and LightGBM are omitted if they are not installed.

N rows, I dense features, F sparse features.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any
from warnings import catch_warnings

import numpy as np
import torch
from torch import Tensor

from dlrmctl.assembly.baseline import build_baseline
from dlrmctl.baseline.examples import BATCH_ROWS, RowMaker, SplitExamples, joined
from dlrmctl.baseline.fit import Fitting
from dlrmctl.bench.timing import spread
from dlrmctl.console.console import print_table, say, warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import number_text
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import SPLITS, Source
from dlrmctl.datasets.open import open_source
from dlrmctl.optim.convex.first_order import adam, svrg
from dlrmctl.optim.convex.lbfgs import full_lbfgs, pb_lbfgs
from dlrmctl.optim.convex.objective import LogisticRegression
from dlrmctl.optim.convex.rows import LabelledRows, SparseRows
from dlrmctl.optim.convex.solution import Iteration
from dlrmctl.ranks.group import Ranks
from dlrmctl.scoring.metrics import StreamingMetrics
from dlrmctl.settings.config import Config

GAPS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the objective to its optimum
_OURS = "dlrmctl baseline"
_ADAM_LRS = (0.003, 0.01, 0.03)
_EVERY = 0.25  # passes between two points of a curve
_SAGA_PASSES = 100
_TREES, _WITHOUT_GAIN = 1000, 25

Scores = tuple[Tensor, Tensor]  # logits of the rows of a split, and their labels
Fit = Callable[[], Callable[[str], Scores]]  # returns what scores a split


def bench_baseline(config: Config, ranks: Ranks, *, rounds: int, passes: int) -> dict[str, Any]:
    """Times whole fits of several programs, and measures the convergence of solvers.

    Args:
        config: names the data, and has the settings of the baseline.
        rounds: number of fits by each program.
        passes: over the data, at most, of a solver.

    Returns:
        Plain values: "examples", "features", "l2", "programs" and "solvers" by name.
    """
    source = open_source(config.data)
    say("reading")
    rows = _Rows(config, source, ranks)
    l2 = rows.fitting().best().l2
    programs: dict[str, Callable[[], Fit]] = {
        _OURS: partial(_ours, rows, None),
        f"{_OURS}, one L2": partial(_ours, rows, l2),
        **_scikit_learn(rows, l2),
        **_lightgbm(rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    quality: dict[str, dict[str, float | None]] = {}
    for number in range(rounds):
        for name, ready in programs.items():
            fit = ready()
            started = time.perf_counter()
            score = fit()
            seconds[name].append(time.perf_counter() - started)
            if name not in quality:
                quality[name] = _quality(score)
            say(f"round {number + 1} of {rounds}  {name}  {seconds[name][-1]:.2f} s")
    return {
        "settings": config.to_dict(),
        "examples": source.num_examples("train"),
        "features": rows.examples["train"].num_features,
        "l2": l2,
        "programs": {name: {"seconds": spread(times), **quality[name]} for name, times in seconds.items()},
        "solvers": _convergence(rows.examples["train"], l2, passes),
    }


class _Rows:
    """The rows of all splits as a linear model sees them, and as they are."""

    def __init__(self, config: Config, source: Source, ranks: Ranks) -> None:
        assert config.baseline is not None
        self.settings, self.source, self.ranks = config.baseline, source, ranks
        self.model = build_baseline(self.settings, source.features)
        make_rows = RowMaker(self.model)
        self.examples = {
            split: SplitExamples(make_rows, source, split, ranks, seed=0, tell=lambda done, total: None)
            for split in SPLITS
        }

    def fitting(self, l2: float | None = None) -> Fitting:
        """Returns a baseline that is ready to be fitted."""
        settings = replace(self.settings, l2=l2)
        return Fitting(settings, 0, self.source, self.model, self.ranks, BarDisplay(shown=False))

    def whole(self, split: str) -> LabelledRows:
        """Returns the rows of a split as one batch."""
        examples = self.examples[split]
        return joined(list(examples.read(0, examples.num_rows)), examples.num_features)

    def raw(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns dense features and ids, float32 [N, I + F], and the labels; lists of ids are omitted."""
        reader = Reader(self.source, split, batch_size=BATCH_ROWS, shuffle=False, drop_last=False)
        columns, labels = [], []
        with closing(reader.batches(0)) as batches:  # type: ignore[type-var]
            for batch in batches:
                one_hot = () if batch.lengths_FB is not None else batch.ids.view(-1, len(batch)).float()
                found = torch.cat([batch.dense_BI, *(ids_B[:, None] for ids_B in one_hot)], 1)
                columns.append(found[: batch.num_valid].numpy())
                labels.append(batch.labels_B[: batch.num_valid].numpy())
        return np.concatenate(columns), np.concatenate(labels)


def _ours(rows: _Rows, l2: float | None) -> Fit:
    fitting = rows.fitting(l2)

    def fit() -> Callable[[str], Scores]:
        point = fitting.best().point
        return lambda split: _linear_scores(rows.whole(split), point)

    return fit


def _linear_scores(part: LabelledRows, point: Tensor) -> Scores:
    return part.rows.times(point[:-1, None])[:, 0] + point[-1], part.labels


def _scikit_learn(rows: _Rows, l2: float) -> dict[str, Callable[[], Fit]]:
    """Two solvers of scikit-learn, with the same penalty; liblinear penalizes the intercept too."""
    if find_spec("sklearn") is None:
        warn("scikit-learn is omitted: it is not installed (`pip install scikit-learn`)")
        return {}
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression as Peer

    def ready(solver: str) -> Fit:
        part = rows.whole("train")
        assert isinstance(part.rows, SparseRows)
        values = np.ones(len(part.rows.ids)) if part.rows.values is None else part.rows.values.numpy()
        matrix = csr_matrix(
            (values, part.rows.ids.numpy(), part.rows.offsets.numpy()), (len(part.labels), part.rows.num_features)
        )
        peer = Peer(C=1 / l2, solver=solver, max_iter=_SAGA_PASSES)

        def fit() -> Callable[[str], Scores]:
            with catch_warnings(action="ignore"):  # of saga, that passes were too few: its quality shows it
                peer.fit(matrix, part.labels.numpy())
            point = torch.from_numpy(np.concatenate([peer.coef_[0], peer.intercept_]))
            return lambda split: _linear_scores(rows.whole(split), point)

        return fit

    return {f"scikit-learn {solver}": partial(ready, solver) for solver in ("liblinear", "saga")}


def _lightgbm(rows: _Rows) -> dict[str, Callable[[], Fit]]:
    """LightGBM with its defaults, ids as categories, stopped by the validation log loss."""
    if find_spec("lightgbm") is None:
        warn("LightGBM is omitted: it is not installed (`pip install lightgbm`)")
        return {}
    import lightgbm

    num_dense = len(rows.source.schema.dense)

    def ready() -> Fit:
        (train, labels), held_out = rows.raw("train"), rows.raw("validation")
        categories = list(range(num_dense, train.shape[1]))
        data = lightgbm.Dataset(train, labels, categorical_feature=categories, free_raw_data=False)
        checked = lightgbm.Dataset(*held_out, reference=data, categorical_feature=categories, free_raw_data=False)

        def fit() -> Callable[[str], Scores]:
            stop = lightgbm.early_stopping(_WITHOUT_GAIN, verbose=False)
            settings = {"objective": "binary", "learning_rate": 0.05, "verbose": -1}
            booster = lightgbm.train(settings, data, _TREES, [checked], callbacks=[stop])

            def score(split: str) -> Scores:
                columns, labels_N = rows.raw(split)
                return torch.from_numpy(booster.predict(columns, raw_score=True)), torch.from_numpy(labels_N)

            return score

        return fit

    return {"LightGBM": ready}


def _quality(score: Callable[[str], Scores]) -> dict[str, float | None]:
    """Log loss and AUC on validation and test."""
    found: dict[str, float | None] = {}
    for split in ("validation", "test"):
        metrics = StreamingMetrics(torch.device("cpu"))
        metrics.update(*score(split))
        computed = metrics.compute()
        found |= {f"{split}_log_loss": computed.log_loss, f"{split}_auc": computed.auc}
    return found


def _convergence(train: SplitExamples, l2: float, passes: int) -> dict[str, Any]:
    """Gaps of the objective to its optimum over the passes, by solver; Adam with the best of some learning rates."""
    counted = LogisticRegression(train, l2=1.0)
    objective = counted.with_l2(l2 / counted.counts.weight)
    scale, start = objective.scale(), objective.start()
    optimum = full_lbfgs(objective, start, scale=scale).value
    solvers: dict[str, Callable[..., Any]] = {
        "pb-lbfgs": partial(pb_lbfgs, scale=scale),
        "full L-BFGS": partial(full_lbfgs, scale=scale),
        "SVRG": partial(svrg, scale=scale),
        **{f"Adam {lr:g}": partial(adam, lr=lr) for lr in _ADAM_LRS},
    }
    found = {name: _curve(objective, run, start, optimum, passes) for name, run in solvers.items()}
    adams = [name for name in found if name.startswith("Adam")]
    best = min(adams, key=lambda name: found[name]["curve"][-1][1])
    return {name: result for name, result in found.items() if name not in adams or name == best}


def _curve(
    objective: LogisticRegression, run: Callable[..., Any], start: Tensor, optimum: float, passes: int
) -> dict[str, Any]:
    measured = objective.with_l2(objective.l2)  # the gap costs passes of its own
    curve: list[tuple[float, float]] = []
    accepted: list[bool] = []

    def watch(iteration: Iteration) -> bool:
        accepted.append(iteration.first_accepted)
        if not curve or iteration.passes >= curve[-1][0] + _EVERY:
            curve.append((iteration.passes, measured.evaluate(iteration.point).value - optimum))
        return curve[-1][1] < GAPS[-1] / 10

    run(objective.with_l2(objective.l2), start, max_passes=passes, watch=watch)
    reached = {f"{gap:g}": next((at for at, value in curve if value <= gap), None) for gap in GAPS}
    return {"passes_to": reached, "first_step_accepted": sum(accepted) / len(accepted), "curve": curve}


def show_bench_baseline(result: dict[str, Any]) -> None:
    """Prints the result of `bench_baseline` as tables."""
    print_table(
        f"fits of {result['examples']:,} examples in memory, {result['features']:,} features, L2 {result['l2']:.4g}",
        ["", "seconds", "fastest", "slowest", "test log loss", "test AUC"],
        [
            [
                name,
                *(f"{found['seconds'][key]:.2f}" for key in ("median", "fastest", "slowest")),
                number_text(found["test_log_loss"], 5),
                number_text(found["test_auc"], 5),
            ]
            for name, found in result["programs"].items()
        ],
    )
    print_table(
        "passes over the data until the objective is this close to its optimum",
        ["", *(f"{gap:g}" for gap in GAPS)],
        [
            [name, *(number_text(found["passes_to"][f"{gap:g}"], 1) for gap in GAPS)]
            for name, found in result["solvers"].items()
        ],
    )
