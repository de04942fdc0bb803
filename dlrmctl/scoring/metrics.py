"""Log loss, NE, AUC, calibration and accuracy, streamed over batches and ranks, with standard errors.

Sums and a histogram of logits are all that travels: one all-reduce. Small sets also keep their predictions, so that
their AUC is exact.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from dlrmctl.data.source import Source

NUM_BINS = 16_384
LOGIT_LIMIT = 16.0  # beyond it probabilities differ from 0 or 1 by 1e-7
EXACT_LIMIT = 1 << 17  # predictions that all ranks together keep for the exact AUC; 2 MiB


@dataclass(frozen=True)
class Metrics:
    """Quality of predictions on a set; `_se` is a standard error. None where a value is not defined.

    `ne` is log loss over the entropy of the base rate; `calibration` is predicted over observed positives.
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

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


class StreamingMetrics:
    """Accumulates metrics over batches; `compute` joins the ranks."""

    def __init__(self, device: torch.device, world_size: int = 1) -> None:
        self.world_size = world_size
        # examples, positives, predicted, loss, loss^2, loss of positives, correct
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)
        self.histogram = torch.zeros(2, NUM_BINS, dtype=torch.float64, device=device)
        self.kept: list[tuple[Tensor, Tensor]] | None = []
        self.num_kept = 0

    def update(self, logits_B: Tensor, labels_B: Tensor) -> None:
        logits, labels = logits_B.detach().double(), labels_B.double()
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        correct = (logits > 0) == (labels > 0.5)
        columns = [torch.ones_like(loss), labels, logits.sigmoid(), loss, loss * loss, loss * labels, correct.double()]
        self.sums += torch.stack(columns).sum(dim=1)
        bins = ((logits + LOGIT_LIMIT) * (NUM_BINS / (2 * LOGIT_LIMIT))).long().clamp_(0, NUM_BINS - 1)
        self.histogram[0].index_add_(0, bins, 1 - labels)
        self.histogram[1].index_add_(0, bins, labels)
        if self.kept is not None:
            self.kept.append((logits, labels))
            self.num_kept += len(logits)
            if self.num_kept * self.world_size > EXACT_LIMIT:
                self.kept = None

    def compute(self, group: dist.ProcessGroup | None = None) -> Metrics:
        """The metrics over all ranks of the group; the same on each. Every rank must call it."""
        sums, histogram = self.sums.clone(), self.histogram.clone()
        kept = self.kept
        if group is not None and group.size() > 1:
            dist.all_reduce(sums, group=group)
            dist.all_reduce(histogram, group=group)
            kept = _gather_kept(kept, self.num_kept, sums.device, group)
        if kept is not None and kept:
            auc, auc_se = exact_auc(torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept]))
        else:
            auc, auc_se = histogram_auc(histogram[0], histogram[1])
        return _from_sums(sums.tolist(), auc, auc_se)


def _gather_kept(
    kept: list[tuple[Tensor, Tensor]] | None, num_kept: int, device: torch.device, group: dist.ProcessGroup
) -> list[tuple[Tensor, Tensor]] | None:
    """All ranks' predictions, or None if any rank has dropped its own."""
    count = torch.tensor(num_kept if kept is not None else -1, device=device)
    counts = [torch.empty_like(count) for _ in range(group.size())]
    dist.all_gather(counts, count, group=group)
    sizes = [int(c) for c in counts]
    if min(sizes) < 0 or max(sizes) == 0:
        return None
    mine = torch.zeros(2, max(sizes), dtype=torch.float64, device=device)
    if kept:
        mine[:, :num_kept] = torch.stack([torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])])
    everyone = [torch.empty_like(mine) for _ in sizes]
    dist.all_gather(everyone, mine, group=group)
    return [(pair[0, :size], pair[1, :size]) for pair, size in zip(everyone, sizes, strict=True)]


def exact_auc(scores_N: Tensor, labels_N: Tensor) -> tuple[float | None, float | None]:
    """AUC and its standard error; ties count half. None, None if a class is absent."""
    _, groups = torch.unique(scores_N, return_inverse=True)
    negatives = torch.bincount(groups, weights=1 - labels_N)
    positives = torch.bincount(groups, weights=labels_N)
    return histogram_auc(negatives, positives)


def histogram_auc(negatives_K: Tensor, positives_K: Tensor) -> tuple[float | None, float | None]:
    """AUC and its standard error from counts per score, ascending; scores in one bin are ties.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), for the variance.
    """
    num_negatives, num_positives = float(negatives_K.sum()), float(positives_K.sum())
    if not num_negatives or not num_positives:
        return None, None
    # A positive's placement: the share of negatives below it. A negative's: the share of positives above it.
    below_K = (negatives_K.cumsum(0) - negatives_K / 2) / num_negatives
    above_K = (positives_K.flip(0).cumsum(0).flip(0) - positives_K / 2) / num_positives
    auc = float((positives_K * below_K).sum() / num_positives)
    variance = 0.0
    for counts, placements, number in ((positives_K, below_K, num_positives), (negatives_K, above_K, num_negatives)):
        if number > 1:
            spread = float((counts * (placements - auc) ** 2).sum()) / (number - 1)
            variance += spread / number
    return auc, math.sqrt(variance)


def entropy(rate: float) -> float:
    """Log loss of always predicting the base rate, in nats."""
    return -sum(share * math.log(share) for share in (rate, 1 - rate) if share > 0)


def _from_sums(sums: list[float], auc: float | None, auc_se: float | None) -> Metrics:
    examples, positives, predicted, loss, loss_squared, loss_of_positives, correct = sums
    if not examples:
        return Metrics(0, *[None] * 8)
    rate, mean = positives / examples, loss / examples
    variance = max(loss_squared / examples - mean * mean, 0.0)
    ne = ne_se = None
    base = entropy(rate)
    if base > 0:
        ne = mean / base
        # Both the loss and the base rate come from the same examples: the delta method over the pair.
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
        auc=auc,
        auc_se=auc_se,
        calibration=predicted / positives if positives else None,
        accuracy=correct / examples,
    )


def with_optimum(metrics: dict[str, Any], source: Source, split: str) -> dict[str, Any]:
    """The metrics beside what the best possible model scores, where that is known.

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
    parts = {"log loss": metrics.log_loss, "ne": metrics.ne, "auc": metrics.auc, "calibration": metrics.calibration}
    return "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in parts.items())
