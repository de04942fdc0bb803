import pytest
import torch

from dlrmctl.embeddings.compression.fits.sampling import weighted_sample
from dlrmctl.embeddings.compression.fits.trained import TableRows


def test_a_weighted_sample_keeps_heavy_rows_and_is_right_on_average():
    weight = torch.arange(1, 2001, dtype=torch.float32)[:, None]
    weights = 1 / torch.arange(1, 2001).float()
    table = TableRows(weight, weights)
    totals, sums = [], []
    for seed in range(200):
        values, own = weighted_sample(table, 200, torch.Generator().manual_seed(seed))
        assert abs(len(values) - 200) <= 1
        assert torch.equal(values[:20, 0], weight[:20, 0])
        assert torch.equal(own[:20], weights[:20])
        totals.append(float(own.sum()))
        sums.append(float((own * values[:, 0]).sum()))
    # Systematic: the total weight is right every time, to the one row that may be missing (the threshold, 0.6 %).
    assert totals == pytest.approx([float(weights.sum())] * 200, rel=0.01)
    assert sum(sums) / 200 == pytest.approx(2000, rel=0.005)  # the true sum is 2000; one sample spreads by 0.5 %
