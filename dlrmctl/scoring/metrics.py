"""Log loss, NE, AUC, calibration and accuracy over batches and ranks, with standard errors.

All but the AUC (see `scoring.auc`) are computed from sums with one all-reduce.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from dlrmctl.console.text import METRICS, number_text
from dlrmctl.data.source import Source
from dlrmctl.scoring.auc import Auc, StreamingAuc


@dataclass(frozen=True)
class Metrics:
    """Quality of predictions; `_se` is a standard error. Values that are not defined are None.

    `base_rate` is the share of positives, and `ne` is log loss over its entropy; `calibration` is predicted over
    observed positives; `auc_bound` bounds the difference of `auc` from the exact value, and `to_dict` omits it if it
    is 0.
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

    def to_dict(self) -> dict[str, float | int | None]:
        values = asdict(self)
        if not self.auc_bound:
            del values["auc_bound"]
        return values


class StreamingMetrics:
    """Accumulates metrics over batches; `compute` combines the ranks."""

    def __init__(self, device: torch.device, world_size: int = 1) -> None:
        # examples, positives, predicted, loss, loss^2, loss of positives, correct
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)
        self.auc = StreamingAuc(device, world_size)

    def update(self, logits_B: Tensor, labels_B: Tensor) -> None:
        logits, labels = logits_B.detach().double(), labels_B.double()
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        correct = (logits > 0) == (labels > 0.5)
        columns = [torch.ones_like(loss), labels, logits.sigmoid(), loss, loss * loss, loss * labels, correct.double()]
        self.sums += torch.stack(columns).sum(dim=1)
        self.auc.update(logits_B, labels_B)

    def compute(self, group: dist.ProcessGroup | None = None) -> Metrics:
        """The metrics over all ranks of the group; the same on each. Every rank must call it."""
        sums = self.sums.clone()
        if group is not None and group.size() > 1:
            dist.all_reduce(sums, group=group)
        return _from_sums(sums.tolist(), self.auc.compute(group))


def entropy(rate: float) -> float:
    """Log loss of always predicting the base rate, in nats."""
    return -sum(share * math.log(share) for share in (rate, 1 - rate) if share > 0)


def _from_sums(sums: list[float], auc: Auc) -> Metrics:
    examples, positives, predicted, loss, loss_squared, loss_of_positives, correct = sums
    if not examples:
        return Metrics(0, None, None, None, None, None, None, None, None)
    rate, mean = positives / examples, loss / examples
    variance = max(loss_squared / examples - mean * mean, 0.0)
    ne = ne_se = None
    base = entropy(rate)
    if base > 0:
        ne = mean / base
        # Loss and base rate come from the same examples, so the delta method needs their covariance.
        slope = -ne * math.log((1 - rate) / rate)
        covariance = loss_of_positives / examples - mean * rate
        spread = variance + slope * slope * rate * (1 - rate) + 2 * slope * covariance
        ne_se = math.sqrt(max(spread, 0.0) / examples) / base
    return Metrics(
        examples=int(examples),
        log_loss=mean,
        log_loss_se=math.sqrt(variance / examples),
        ne=ne,
        ne_se=ne_se,
        auc=auc.value,
        auc_se=auc.se,
        auc_bound=auc.bound,
        base_rate=rate,
        calibration=predicted / positives if positives else None,
        accuracy=correct / examples,
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
    """Log loss, NE and AUC in one line."""
    return "  ".join(f"{METRICS[name]} {number_text(getattr(metrics, name))}" for name in ("log_loss", "ne", "auc"))
