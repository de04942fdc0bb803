import math

import pytest
import torch
import torch.distributed as dist

from dlrmctl.scoring.metrics import StreamingMetrics, entropy
from tests import reference
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def _rows(count: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, generator=generator) - 1
    labels = (torch.rand(count, generator=generator) < torch.sigmoid(logits)).float()
    return logits.round(decimals=1), labels  # rounded: there are ties


def test_metrics_equal_the_plain_definitions():
    logits, labels = _rows()
    metrics = StreamingMetrics(CPU)
    for start in range(0, 400, 64):
        metrics.update(logits[start : start + 64], labels[start : start + 64])
    found = metrics.compute()
    probabilities, truth = logits.double().sigmoid().tolist(), labels.tolist()
    rate = sum(truth) / len(truth)
    loss = reference.log_loss(probabilities, truth)
    # float64 sums in another order
    assert found.examples == 400
    assert found.log_loss == pytest.approx(loss, rel=1e-12)
    assert found.ne == pytest.approx(loss / entropy(rate), rel=1e-12)
    assert found.auc == pytest.approx(reference.auc(logits.tolist(), truth), rel=1e-12)
    assert found.calibration == pytest.approx(sum(probabilities) / sum(truth), rel=1e-12)
    assert found.accuracy == pytest.approx(
        sum((p > 0.5) == (y == 1) for p, y in zip(probabilities, truth, strict=True)) / 400
    )


def test_standard_errors_equal_the_spread_over_samples():
    samples = []
    for seed in range(300):
        metrics = StreamingMetrics(CPU)
        metrics.update(*_rows(seed=seed))
        samples.append(metrics.compute())
    for name in ("log_loss", "ne", "auc"):
        values = torch.tensor([getattr(m, name) for m in samples], dtype=torch.float64)
        claimed = torch.tensor([getattr(m, f"{name}_se") for m in samples], dtype=torch.float64).mean()
        # The deviation of 300 samples is itself known to 1 / sqrt(600) = 4 %; four of those.
        assert float(claimed / values.std()) == pytest.approx(1, abs=0.16)


def test_one_class_has_no_auc_and_no_ne():
    metrics = StreamingMetrics(CPU)
    metrics.update(torch.zeros(5), torch.zeros(5))
    found = metrics.compute()
    assert found.auc is None
    assert found.ne is None
    assert found.calibration is None
    assert found.log_loss == pytest.approx(math.log(2))


def test_nothing_seen_is_no_number():
    found = StreamingMetrics(CPU).compute()
    assert found.examples == 0
    assert found.log_loss is None


def _metrics_of_share(sizes: list[int]) -> dict:
    logits, labels = _rows()
    rank = dist.get_rank()
    start = sum(sizes[:rank])
    metrics = StreamingMetrics(CPU)
    metrics.update(logits[start : start + sizes[rank]], labels[start : start + sizes[rank]])
    return metrics.compute(dist.group.WORLD).to_dict()


@pytest.mark.parametrize("sizes", [[200, 200], [399, 1], [400, 0]])
def test_two_ranks_see_what_one_sees(sizes: list[int]):
    metrics = StreamingMetrics(CPU)
    metrics.update(*_rows())
    expected = metrics.compute().to_dict()
    first, second = run_ranks(_metrics_of_share, 2, sizes)
    assert first == second
    assert first == pytest.approx(expected, rel=1e-12)  # float64 sums in another order
