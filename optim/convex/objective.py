"""Regularised finite sums whose rows are read in batches, and logistic regression as one of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed
from torch.nn.functional import softplus

from dlrmctl.optim.convex.rows import LabelledRows, RowSource


@dataclass(frozen=True)
class RowRanks:
    """The ranks that share a sum's rows.

    Attributes:
        rank: this one's number.
        count: how many there are.
        group: of torch.distributed, None for the default group.
    """

    rank: int = 0
    count: int = 1
    group: distributed.ProcessGroup | None = None

    @staticmethod
    def of(group: distributed.ProcessGroup | None = None) -> RowRanks:
        """The ranks of a group; the default group if None."""
        return RowRanks(distributed.get_rank(group), distributed.get_world_size(group), group)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each; may change its argument."""
        if self.count > 1:
            distributed.all_reduce(tensor, group=self.group)
        return tensor


@dataclass(frozen=True)
class RowSample:
    """Consecutive rows of the sum, `start` up to and without `stop`; beyond the last row they continue at the first.

    Each rank reads the same share of its own rows, so a sample is one set of rows over all ranks.
    """

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def halves(self) -> tuple[RowSample, RowSample]:
        middle = self.start + self.size // 2
        return RowSample(self.start, middle), RowSample(middle, self.stop)


@dataclass(frozen=True)
class Evaluation:
    """The sum over a sample at one point.

    Attributes:
        value: mean loss of the rows and the regulariser.
        gradient: its gradient, `[num_parameters]`.
        variance: of one row's gradient about the gradient of the sample, summed over the parameters.
        weight: total weight of the sample's rows.
    """

    value: float
    gradient: Tensor
    variance: float
    weight: float


@dataclass(frozen=True)
class Line:
    """The sum over a sample along a direction.

    Attributes:
        values: one for each step asked for.
        variance: of the product of one row's gradient, at the beginning of the line, with the probe.
    """

    values: list[float]
    variance: float


class FiniteSum(ABC):
    """`F(x) = sum_i weight_i loss_i(x) / sum_i weight_i + 1/2 sum_j penalty_j x_j^2`, convex, read row by row.

    `sample` is None for all rows. Everything that is returned is the same on all ranks, except for `root_rows`.
    """

    num_rows: int  # over all ranks
    num_local_rows: int  # of this rank
    num_parameters: int
    penalty: Tensor  # [num_parameters], second derivative of the regulariser
    ranks: RowRanks
    rows_read: int  # so far, over all ranks; a pass over the data reads `num_rows`

    @abstractmethod
    def evaluate(self, point: Tensor, sample: RowSample | None = None) -> Evaluation:
        """Value, gradient and the gradient's variance; one pass over the sample."""

    @abstractmethod
    def along(
        self,
        point: Tensor,
        direction: Tensor,
        steps: Sequence[float],
        sample: RowSample | None = None,
        *,
        probe: Tensor,
    ) -> Line:
        """Values at `point + step * direction` for every step, and the variance along a probe; one pass."""

    @abstractmethod
    def root_rows(self, point: Tensor) -> Iterator[Tensor]:
        """This rank's rows of B, where `B^T B` summed over ranks is the Hessian without its penalty.

        Yields:
            Batches `[rows, num_parameters]` in the order of the rows, of bounded memory.
        """

    @abstractmethod
    def hessian(self, point: Tensor) -> Tensor:
        """The Hessian over all rows, with the penalty, `[num_parameters, num_parameters]`."""

    @abstractmethod
    def local_hessian(self, point: Tensor) -> tuple[Tensor, int]:
        """The mean over this rank's rows alone, without the penalty, and the number of those rows."""

    def check_optimum(self) -> None:
        """Refuse a sum whose last evaluation over all rows has shown that it has no optimum."""
        return None

    def original(self, point: Tensor) -> Tensor:
        """The point in the units of the user."""
        return point

    def norm(self, gradient: Tensor) -> float:
        """Euclidean norm of a gradient in the units of the user."""
        return float(gradient.norm())

    @property
    def passes(self) -> float:
        """Passes over the data so far."""
        return self.rows_read / self.num_rows


@dataclass(frozen=True)
class LabelCounts:
    """What one pass over the examples tells about them, over all ranks.

    Attributes:
        rows: how many.
        weight: their total weight.
        positive: weight of the positive labels.
        square_D: weighted mean square of every feature.
    """

    rows: int
    weight: float
    positive: float
    square_D: Tensor

    @property
    def base_rate(self) -> float:
        return self.positive / self.weight


class LogisticRegression(FiniteSum):
    """Mean log loss of a linear model with an intercept, and `l2/2` times the squared norm of its weights.

    The parameters are one weight for each feature and then the intercept, which is not penalized; float64. In
    scikit-learn's terms `C = 1 / (l2 * total weight of the rows)`.

    Args:
        source: this rank's examples.
        l2: at least 0.
        ranks: `RowRanks.of(group)` where several ranks have a part of the rows each; None for one rank.
        counts: from another instance with the same examples, which saves a pass over them.

    Raises:
        ValueError: if a label, weight or feature is not finite, a label is outside [0, 1], there are no rows, all
            rows have one label, or `l2` is 0 and some feature that is never negative occurs with one label only.
    """

    def __init__(
        self, source: RowSource, *, l2: float, ranks: RowRanks | None = None, counts: LabelCounts | None = None
    ) -> None:
        if not (0 <= l2 < math.inf):
            raise ValueError(f"{l2=} must be at least 0 and finite")
        self.source = source
        self.l2 = l2
        self.ranks = ranks or RowRanks()
        self.rows_read = 0
        self.num_parameters = source.num_features + 1
        self.penalty = torch.full((self.num_parameters,), l2, dtype=torch.float64)
        self.penalty[-1] = 0.0
        self.counts = counts or self._count()
        self.num_rows, self.num_local_rows = self.counts.rows, source.num_rows
        self._separated = False

    def with_l2(self, l2: float) -> LogisticRegression:
        """The same examples with another penalty; nothing is counted again."""
        return LogisticRegression(self.source, l2=l2, ranks=self.ranks, counts=self.counts)

    def start(self) -> Tensor:
        """The best point without features: weights 0, and the base rate's logit."""
        point = torch.zeros(self.num_parameters, dtype=torch.float64)
        point[-1] = math.log(self.counts.positive / (self.counts.weight - self.counts.positive))
        return point

    def evaluate(self, point: Tensor, sample: RowSample | None = None) -> Evaluation:
        gradient = torch.zeros_like(point)
        loss = weight = square = 0.0
        wrong = 0
        for batch in self._read(sample):
            logits_N = self._logits(batch, point[:, None])[:, 0]
            weights_N = _weights(batch)
            errors_N = weights_N * (logits_N.sigmoid() - batch.labels)
            loss += float(weights_N @ _losses(logits_N, batch.labels))
            weight += float(weights_N.sum())
            square += float(errors_N.square() @ (batch.rows.squared_norms() + 1.0))  # 1: the intercept
            wrong += int(((batch.labels - 0.5) * logits_N <= 0).sum())
            gradient[:-1] += batch.rows.transposed_times(errors_N)
            gradient[-1] += errors_N.sum()
        totals = self.ranks.sum(torch.cat([gradient, torch.tensor([loss, weight, square, wrong], dtype=torch.float64)]))
        gradient, (loss, weight, square, wrong_total) = totals[:-4], totals[-4:].tolist()
        gradient /= weight
        size = sample.size if sample is not None else self.num_rows
        # A row's gradient is size / weight times its part of the sum, so that their mean is the sample's gradient.
        variance = max(square * size / weight**2 - float(gradient @ gradient), 0.0)
        if sample is None:
            self._separated = wrong_total == 0
        value = loss / weight + 0.5 * float(self.penalty @ point.square())
        if not math.isfinite(value):
            raise ValueError("the loss is not finite: features or weights are too large, or not finite")
        return Evaluation(value, gradient + self.penalty * point, variance, weight)

    def along(
        self,
        point: Tensor,
        direction: Tensor,
        steps: Sequence[float],
        sample: RowSample | None = None,
        *,
        probe: Tensor,
    ) -> Line:
        columns_DK = torch.stack([point, direction, probe], dim=1)
        losses = torch.zeros(len(steps), dtype=torch.float64)
        weight = first = second = 0.0
        for batch in self._read(sample):
            logits_N, slopes_N, probes_N = self._logits(batch, columns_DK).unbind(1)
            weights_N = _weights(batch)
            weight += float(weights_N.sum())
            products_N = weights_N * (logits_N.sigmoid() - batch.labels) * probes_N
            first += float(products_N.sum())
            second += float(products_N.square().sum())
            for number, step in enumerate(steps):
                losses[number] += weights_N @ _losses(logits_N + step * slopes_N, batch.labels)
        totals = self.ranks.sum(torch.cat([losses, torch.tensor([weight, first, second], dtype=torch.float64)]))
        weight, first, second = totals[-3:].tolist()
        size = sample.size if sample is not None else self.num_rows
        penalties = [0.5 * float(self.penalty @ (point + step * direction).square()) for step in steps]
        values = [loss / weight + penalty for loss, penalty in zip(totals[:-3].tolist(), penalties, strict=True)]
        return Line(values, max(second * size - first**2, 0.0) / weight**2)

    def root_rows(self, point: Tensor) -> Iterator[Tensor]:
        most = max(1, 2**22 // self.num_parameters)  # rows of 32 MiB at a time
        for batch in self._read(None):
            roots_N = (self._curvatures(batch, point) / self.counts.weight).sqrt()
            for begin in range(0, batch.rows.num_rows, most):
                end = min(begin + most, batch.rows.num_rows)
                roots_M = roots_N[begin:end, None]
                yield torch.cat([batch.rows.narrow(begin, end).dense() * roots_M, roots_M], dim=1)

    def hessian(self, point: Tensor) -> Tensor:
        total, _, _ = self._curvature_sum(point)
        return self.ranks.sum(total) / self.counts.weight + self.penalty.diag()

    def local_hessian(self, point: Tensor) -> tuple[Tensor, int]:
        total, weight, rows = self._curvature_sum(point)
        return total / weight, rows

    def scale(self) -> Tensor:
        """Units in which every parameter curves alike at the base rate, `[num_parameters]`; reads no rows."""
        variance = self.counts.base_rate * (1 - self.counts.base_rate)
        squares = torch.cat([self.counts.square_D, torch.ones(1, dtype=torch.float64)])
        curvature = variance * squares + self.penalty
        return torch.where(curvature > 0, curvature, 1.0).rsqrt()

    def diagonal(self, point: Tensor) -> Tensor:
        """The Hessian's diagonal with the penalty, `[num_parameters]`; one pass."""
        total = torch.zeros_like(point)
        for batch in self._read(None):
            curvatures_N = self._curvatures(batch, point)
            total[:-1] += batch.rows.mapped(torch.square).transposed_times(curvatures_N)
            total[-1] += curvatures_N.sum()
        return self.ranks.sum(total) / self.counts.weight + self.penalty

    def check_optimum(self) -> None:
        if self.l2 == 0 and self._separated:
            raise ValueError("the classes are separable: with l2 = 0 there is no optimum; use an l2 above 0")

    def _count(self) -> LabelCounts:
        """One pass over the examples, which checks them too."""
        features = self.source.num_features
        totals = torch.zeros(4, dtype=torch.float64)  # rows, weight, positive, problems
        square_D = torch.zeros(features, dtype=torch.float64)
        sums_3D = torch.zeros(3, features, dtype=torch.float64)  # of positive rows, of all rows, of magnitudes
        problem: str | None = None
        for batch in self.source.read(0, self.source.num_rows):
            problem = problem or batch.rows.problem() or _problem_of_labels(batch)
            if problem is not None:
                continue
            weights_N, labels_N = _weights(batch), batch.labels
            square_D += batch.rows.mapped(torch.square).transposed_times(weights_N)
            if self.l2 == 0:
                sums_3D[0] += batch.rows.transposed_times(weights_N * labels_N)
                sums_3D[1] += batch.rows.transposed_times(weights_N)
                sums_3D[2] += batch.rows.mapped(torch.abs).transposed_times(weights_N)
            totals[:3] += torch.stack([weights_N.new_tensor(len(labels_N)), weights_N.sum(), weights_N @ labels_N])
        totals[3] = problem is not None
        rows, weight, positive, problems = self.ranks.sum(totals).tolist()
        square_D = self.ranks.sum(square_D)
        if problems:  # on any rank: all stop
            raise ValueError(problem or "another rank has rows that cannot be used")
        if not rows or not weight:
            raise ValueError("there are no rows to fit, or all weigh 0")
        if not 0 < positive < weight:
            raise ValueError(f"all {int(rows)} rows have the label {int(positive > 0)}, expected both labels")
        if self.l2 == 0:
            _refuse_one_sided(self.ranks.sum(sums_3D))
        return LabelCounts(int(rows), weight, positive, square_D / weight)

    def _read(self, sample: RowSample | None) -> Iterator[LabelledRows]:
        """This rank's share of a sample."""
        mine, rows = self.num_local_rows, self.num_rows
        first, last = (0, rows) if sample is None else (sample.start, sample.stop)
        self.rows_read += last - first
        while first < last:
            turn = first // rows  # times through all rows so far
            end = min(last, (turn + 1) * rows)
            yield from self.source.read((first - turn * rows) * mine // rows, (end - turn * rows) * mine // rows)
            first = end

    def _logits(self, batch: LabelledRows, columns_DK: Tensor) -> Tensor:
        return batch.rows.times(columns_DK[:-1]) + columns_DK[-1]

    def _curvatures(self, batch: LabelledRows, point: Tensor) -> Tensor:
        probabilities_N = self._logits(batch, point[:, None])[:, 0].sigmoid()
        return _weights(batch) * probabilities_N * (1 - probabilities_N)

    def _curvature_sum(self, point: Tensor) -> tuple[Tensor, float, int]:
        total = torch.zeros(self.num_parameters, self.num_parameters, dtype=torch.float64)
        weight = 0.0
        for batch in self._read(None):
            curvatures_N = self._curvatures(batch, point)
            border = batch.rows.transposed_times(curvatures_N)
            total[:-1, :-1] += batch.rows.gram(curvatures_N)
            total[:-1, -1] += border
            total[-1, :-1] += border
            total[-1, -1] += curvatures_N.sum()
            weight += float(_weights(batch).sum())
        return total, weight, self.num_local_rows


def _weights(batch: LabelledRows) -> Tensor:
    return torch.ones_like(batch.labels) if batch.weights is None else batch.weights


def _problem_of_labels(batch: LabelledRows) -> str | None:
    labels_N, weights_N = batch.labels, _weights(batch)
    if not ((labels_N >= 0) & (labels_N <= 1)).all():
        return "labels must be in [0, 1]"
    return None if ((weights_N >= 0) & weights_N.isfinite()).all() else "weights must be finite and not negative"


def _losses(logits_N: Tensor, labels_N: Tensor) -> Tensor:
    """Log loss of every row."""
    return softplus(logits_N, threshold=40.0) - labels_N * logits_N  # beyond 40, log(1 + e^z) is z in float64


class OneSidedFeatureError(ValueError):
    """A feature occurs with one label only, so that without a penalty its best weight is infinite.

    Attributes:
        feature: its number.
        count: number of such features.
    """

    def __init__(self, feature: int, count: int) -> None:
        super().__init__(
            f"with l2 = 0 there is no optimum: feature {feature} occurs with one label only ({count} such features); "
            "use an l2 above 0"
        )
        self.feature, self.count = feature, count


def _refuse_one_sided(sums_3D: Tensor) -> None:
    """Refuse features of one sign that occur with one label only: their best weight is infinite."""
    positive_D, total_D, magnitude_D = sums_3D
    one_sign_D = (total_D.abs() == magnitude_D) & (magnitude_D > 0)
    found = (one_sign_D & ((positive_D == 0) | (positive_D == total_D))).nonzero()[:, 0].tolist()
    if found:
        raise OneSidedFeatureError(found[0], len(found))


class Rescaled(FiniteSum):
    """The same sum in other units: the parameter `u` stands for `scale * u`.

    With `LogisticRegression.scale` rare and frequent features curve alike, which helps methods without a Hessian; the
    optimum is the same point.
    """

    def __init__(self, base: FiniteSum, scale: Tensor) -> None:
        self.base, self.scale = base, scale
        self.num_rows, self.num_local_rows = base.num_rows, base.num_local_rows
        self.num_parameters, self.ranks = base.num_parameters, base.ranks
        self.penalty = base.penalty * scale.square()

    @property
    def rows_read(self) -> int:  # type: ignore[override]
        return self.base.rows_read

    def evaluate(self, point: Tensor, sample: RowSample | None = None) -> Evaluation:
        found = self.base.evaluate(self.scale * point, sample)
        return replace(found, gradient=self.scale * found.gradient)

    def along(
        self,
        point: Tensor,
        direction: Tensor,
        steps: Sequence[float],
        sample: RowSample | None = None,
        *,
        probe: Tensor,
    ) -> Line:
        scale = self.scale
        return self.base.along(scale * point, scale * direction, steps, sample, probe=scale * probe)

    def root_rows(self, point: Tensor) -> Iterator[Tensor]:
        for batch in self.base.root_rows(self.scale * point):
            yield batch * self.scale

    def hessian(self, point: Tensor) -> Tensor:
        return self.scale[:, None] * self.base.hessian(self.scale * point) * self.scale

    def local_hessian(self, point: Tensor) -> tuple[Tensor, int]:
        hessian, rows = self.base.local_hessian(self.scale * point)
        return self.scale[:, None] * hessian * self.scale, rows

    def check_optimum(self) -> None:
        self.base.check_optimum()

    def original(self, point: Tensor) -> Tensor:
        return self.base.original(self.scale * point)

    def norm(self, gradient: Tensor) -> float:
        return self.base.norm(gradient / self.scale)
