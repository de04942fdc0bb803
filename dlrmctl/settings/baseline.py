"""The settings of a baseline: logistic regression on the features of prepared data."""

from dataclasses import dataclass

from dlrmctl.settings.setting import setting

SOLVERS = ("auto", "pb-lbfgs", "newton", "newton-less", "dist-newton")
SKETCHES = ("less", "less-uniform", "rows")
DENSE_COLUMNS = ("buckets", "raw")
MOST_FEATURES = 1 << 31  # columns are int32


@dataclass(frozen=True)
class BaselineSettings:
    solver: str = setting(
        "auto", "Solver: auto is newton for few features, otherwise pb-lbfgs (batches that grow).", choices=SOLVERS
    )
    sketch: str = setting("less", "Sketch of the Hessian for newton-less.", choices=SKETCHES)
    l2: float | None = setting(
        None,
        "L2 penalty: half of it times the sum of squared weights is added to the sum of log losses (1/C of "
        "scikit-learn). Default: auto, the best of a path on the validation split.",
        at_least=0,
        auto=True,
    )
    max_features: int = setting(
        5_000_000,
        "Hash the ids of the largest tables, so that there is a weight for at most this many.",
        at_least=1,
        at_most=MOST_FEATURES,
    )
    dense: str = setting(
        "buckets",
        "Dense features: one weight per bucket of their values (buckets), or one for the normalized value (raw).",
        choices=DENSE_COLUMNS,
    )
