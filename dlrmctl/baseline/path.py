"""Chooses the L2 penalty on the validation split: a short path from large to small penalties with warm starts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from dlrmctl.scoring.metrics import Metrics

FIRST = 1e3  # first penalty of the path, on the sum of log losses
SMALLEST, LARGEST = 1e-3, 1e6
FACTOR = 10**0.5  # from one penalty to the next
_CLEARLY = 1.002  # a validation log loss this many times the best ends the path,
_LEAST_SHIFT = 0.1  # of the last penalty from the best of the path, in factors
_PATIENCE = 2  # and so do so many penalties in a row without gain


@dataclass(frozen=True, eq=False)
class PathPoint:
    """The fit for one penalty.

    Attributes:
        l2: the penalty.
        passes: over the training examples.
        iterations: of the solver.
        seconds: of fitting and scoring.
        reason: why the solver stopped.
        validation: metrics on the validation split.
        point: the weights, and the intercept last.
    """

    l2: float
    passes: float
    iterations: int
    seconds: float
    reason: str
    validation: Metrics
    point: Tensor = field(repr=False)

    @property
    def log_loss(self) -> float:
        assert self.validation.log_loss is not None
        return self.validation.log_loss

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, without the weights."""
        values = asdict(self)
        del values["point"]
        return values | {"validation": self.validation.to_dict()}


Fit = Callable[[float, Tensor], PathPoint]  # for a penalty and a start


def follow_path(fit: Fit, start: Tensor) -> PathPoint:
    """Fits ever smaller penalties until the validation log loss rises clearly, then one between the best three.

    If the first penalty is the best, larger ones follow.

    Args:
        fit: fits one penalty.
        start: where the first fit starts; later ones start at the solution of the last one.

    Returns:
        The fit with the lowest validation log loss.
    """
    found = [fit(FIRST, start)]

    def best() -> PathPoint:
        return min(found, key=lambda fitted: fitted.log_loss)

    def go(factor: float, begin: PathPoint) -> None:
        without_gain, l2, point = 0, begin.l2 * factor, begin.point
        while SMALLEST * 0.999 <= l2 <= LARGEST * 1.001 and without_gain < _PATIENCE:
            fitted = fit(l2, point)
            found.append(fitted)
            if fitted.log_loss > _CLEARLY * best().log_loss:
                break
            without_gain = 0 if fitted is best() else without_gain + 1
            l2, point = l2 * factor, fitted.point

    go(1 / FACTOR, found[0])
    if best() is found[0]:
        go(FACTOR, found[0])
    middle = best()
    shift = _shift(sorted(found, key=lambda fitted: fitted.l2), middle)
    if abs(shift) > _LEAST_SHIFT:
        found.append(fit(middle.l2 * FACTOR**shift, middle.point))
    return best()


def _shift(fits: Sequence[PathPoint], middle: PathPoint) -> float:
    """Where a parabola through a fit and its neighbours is lowest, in factors from the fit's penalty; 0 at the ends."""
    place = fits.index(middle)
    if not 0 < place < len(fits) - 1:
        return 0.0
    left, right = fits[place - 1].log_loss - middle.log_loss, fits[place + 1].log_loss - middle.log_loss
    return 0.5 * (left - right) / (left + right) if left + right > 0 else 0.0
