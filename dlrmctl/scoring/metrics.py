"""Log loss, NE, AUC, calibration and accuracy over batches and ranks, with standard errors.

All but the AUC (see `scoring.auc`, and `scoring.groups` for that of groups) are computed from sums with one all-reduce.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from dlrmctl.console.text import METRICS, number_text
from dlrmctl.data.batch import Batch
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import Source
from dlrmctl.scoring.auc import Auc, StreamingAuc
from dlrmctl.scoring.groups import StreamingGroupAuc


@dataclass(frozen=True)
class Metrics:
    """Quality of predictions; `_se` is a standard error. Values that are not defined are None.

    `base_rate` is the share of positives, and `ne` is log loss over its entropy; `calibration` is predicted over
    observed positives; `auc_bound` bounds the difference of `auc` from the exact value, and `to_dict` omits it if it
    is 0. If examples have weights, all but `examples` are weighted, and `weight` is their sum. If they have groups,
    `gauc` is the mean AUC of the `groups` that have both labels. `to_dict` omits what the examples do not have.
    """

    examples: int
    log_loss: float | None
    log_loss_se: float | None
    ne: float | None
    ne_se: float | None
    auc: float | None
    auc_se: float | None
    calibration: float | None
    accuracy: float | None
    auc_bound: float = 0.0
    base_rate: float | None = None
    weight: float | None = None
    gauc: float | None = None
    gauc_se: float | None = None
    groups: int | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        values = asdict(self)
        omitted = [] if self.auc_bound else ["auc_bound"]
        omitted += [] if self.weight is not None else ["weight"]
        omitted += [] if self.groups is not None else ["gauc", "gauc_se", "groups"]
        return {name: value for name, value in values.items() if name not in omitted}


class StreamingMetrics:
    """Accumulates metrics over batches; `compute` combines the ranks.

    Args:
        device: of the sums and the scores.
        world_size: number of ranks that accumulate.
        weighted, grouped: whether examples have weights and groups.
    """

    def __init__(
        self, device: torch.device, world_size: int = 1, *, weighted: bool = False, grouped: bool = False
    ) -> None:
        # examples, positives, predicted, loss, loss^2, loss of positives, correct; the middle ones then weighted once,
        # the squares with the squares of the weights, and after them: squares of weights, by it loss, and positives
        self.sums = torch.zeros(7 if not weighted else 11, dtype=torch.float64, device=device)
        self.auc = StreamingAuc(device, world_size, weighted=weighted)
        self.groups = StreamingGroupAuc(device, world_size) if grouped else None

    @classmethod
    def of(cls, schema: Schema, device: torch.device, world_size: int = 1) -> "StreamingMetrics":
        """The metrics of data with this schema."""
        weighted, grouped = schema.weight is not None, schema.group is not None
        return cls(device, world_size, weighted=weighted, grouped=grouped)

    def add(self, batch: Batch, logits_B: Tensor) -> None:
        """Adds the examples of a batch that count."""
        valid = slice(batch.num_valid)
        weights_B = None if batch.weights_B is None else batch.weights_B[valid]
        groups_B = None if batch.groups_B is None else batch.groups_B[valid]
        self.update(logits_B[valid], batch.labels_B[valid], weights_B, groups_B)

    def update(
        self,
        logits_B: Tensor,
        labels_B: Tensor,
        weights_B: Tensor | None = None,
        groups_B: Tensor | None = None,
    ) -> None:
        """Adds examples, with weights and groups if they have them."""
        logits, labels = logits_B.detach().double(), labels_B.double()
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        correct = ((logits > 0) == (labels > 0.5)).double()
        ones = torch.ones_like(loss)
        if weights_B is None:
            columns = [ones, labels, logits.sigmoid(), loss, loss * loss, loss * labels, correct]
        else:
            w = weights_B.double()
            square = w * w
            first = [ones, w * labels, w * logits.sigmoid(), w * loss, square * loss * loss, square * loss * labels]
            columns = [*first, w * correct, w, square, square * loss, square * labels]
        self.sums += torch.stack(columns).sum(dim=1)
        self.auc.update(logits_B, labels_B, weights_B)
        if self.groups is not None:
            assert groups_B is not None
            self.groups.update(logits_B, labels_B, groups_B, weights_B)

    def compute(self, group: dist.ProcessGroup | None = None) -> Metrics:
        """The metrics over all ranks of the group; the same on each. Every rank must call it."""
        sums = self.sums.clone()
        if group is not None and group.size() > 1:
            dist.all_reduce(sums, group=group)
        found = _from_sums(sums.tolist(), self.auc.compute(group))
        if self.groups is None:
            return found
        grouped = self.groups.compute(group)
        return replace(found, gauc=grouped.value, gauc_se=grouped.se, groups=grouped.groups)


def entropy(rate: float) -> float:
    """Log loss of always predicting the base rate, in nats."""
    return -sum(share * math.log(share) for share in (rate, 1 - rate) if share > 0)


def _from_sums(sums: list[float], auc: Auc) -> Metrics:
    examples, positives, predicted, loss, loss_squared, loss_of_positives, correct = sums[:7]
    # Unweighted, every sum by squares of weights is a plain one.
    weight, squares, loss_by_squares, positives_by_squares = sums[7:] or [examples, examples, loss, positives]
    known = weight if sums[7:] else None
    if not weight:
        return Metrics(int(examples), None, None, None, None, None, None, None, None, weight=known)
    rate, mean = positives / weight, loss / weight
    # Variances of sums of weight * (value - mean), over the square of the weight of all.
    variance = max(loss_squared - 2 * mean * loss_by_squares + mean * mean * squares, 0.0)
    ne = ne_se = None
    base = entropy(rate)
    if base > 0:
        ne = mean / base
        # Loss and base rate come from the same examples, so the delta method needs their covariance.
        slope = -ne * math.log((1 - rate) / rate)
        covariance = loss_of_positives - rate * loss_by_squares - mean * positives_by_squares + mean * rate * squares
        of_rate = positives_by_squares * (1 - 2 * rate) + rate * rate * squares
        spread = variance + slope * slope * of_rate + 2 * slope * covariance
        ne_se = math.sqrt(max(spread, 0.0)) / weight / base
    return Metrics(
        examples=int(examples),
        log_loss=mean,
        log_loss_se=math.sqrt(variance) / weight,
        ne=ne,
        ne_se=ne_se,
        auc=auc.value,
        auc_se=auc.se,
        auc_bound=auc.bound,
        base_rate=rate,
        calibration=predicted / positives if positives else None,
        accuracy=correct / weight,
        weight=known,
    )


def with_optimum(metrics: dict[str, Any], source: Source, split: str) -> dict[str, Any]:
    """Adds the scores of the best possible model, if known.

    `gap_closed` is 0 for a constant prediction and 1 for the best one.
    """
    bayes = source.bayes(split)
    if bayes is None or metrics["ne"] is None:
        return metrics
    return metrics | {
        "bayes_log_loss": bayes.log_loss,
        "bayes_ne": bayes.ne,
        "bayes_auc": bayes.auc,
        "gap_closed": (1 - metrics["ne"]) / (1 - bayes.ne),
    }


def short_text(metrics: Metrics) -> str:
    """Log loss, NE and AUC, and gAUC if there are groups, in one line."""
    names = ("log_loss", "ne", "auc", *(("gauc",) if metrics.groups is not None else ()))
    return "  ".join(f"{METRICS[name]} {number_text(getattr(metrics, name))}" for name in names)
