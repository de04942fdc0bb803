"""Dense inputs: what a plain computation gives, also inside an exported program."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlrmctl.models import DenseNetwork
from dlrmctl.models.inputs import MOST_DEVIATIONS, NormalizedInputs, QuantileInputs, RawInputs, StandardInputs

MEANS, DEVIATIONS = [0.5, 2000.0, 3.0], [2.0, 0.25, 0.0]
LOWS, HIGHS = [-4.0, 1999.0, 3.0], [1e6, 2000.5, 3.0]
VALUES = [[-1.0, 0.0, 1.0, 10.0], [1999.0, 2000.0, 2000.5], []]
SCORES = [[-1.5, -0.5, 0.25, 2.0], [-1.0, 0.0, 1.0], []]
INDICATED = [True, False, True]
NAN = float("nan")
DENSE = torch.tensor(
    [
        [0.5, 2000.25, 3.0],
        [-9.0, 1990.0, 4.0],
        [1e7, 2010.0, NAN],
        [NAN, NAN, 2.0],
        [5.5, 1999.5, NAN],
        [0.0, 2000.5, 3.0],
    ]
)


def standard() -> NormalizedInputs:
    return StandardInputs(MEANS, DEVIATIONS, LOWS, HIGHS, INDICATED)


def quantile() -> NormalizedInputs:
    return QuantileInputs(VALUES, SCORES, INDICATED)


def _standard_slowly(i: int, value: float) -> float:
    if not DEVIATIONS[i]:
        return 0.0
    score = (min(max(value, LOWS[i]), HIGHS[i]) - MEANS[i]) / DEVIATIONS[i]
    return min(max(score, -MOST_DEVIATIONS), MOST_DEVIATIONS)


def _quantile_slowly(i: int, value: float) -> float:
    return float(np.interp(value, VALUES[i], SCORES[i])) if VALUES[i] else 0.0


CASES = [(standard, _standard_slowly), (quantile, _quantile_slowly)]


@pytest.mark.parametrize(("make", "slowly"), CASES)
def test_features_are_scaled_and_missing_ones_told(
    make: Callable[[], NormalizedInputs], slowly: Callable[[int, float], float]
) -> None:
    inputs = make()
    found = inputs(DENSE)
    assert found.shape == (len(DENSE), inputs.out_features) == (6, 5)
    for row, scaled in zip(DENSE.tolist(), found.tolist(), strict=True):
        expected = [0.0 if value != value else slowly(i, value) for i, value in enumerate(row)]
        # Values of 2000 have 2^-13 between them as float32, and a deviation of 1/4.
        assert scaled[:3] == pytest.approx(expected, abs=2**-11)
        assert scaled[3:] == [float(row[0] != row[0]), float(row[2] != row[2])]


def test_features_without_gaps_have_no_indicators() -> None:
    inputs = StandardInputs(MEANS, DEVIATIONS, LOWS, HIGHS, [False] * 3)
    assert inputs.out_features == 3
    assert torch.equal(inputs(DENSE), standard()(DENSE)[:, :3])


def test_quantiles_of_the_smallest_numbers_are_scores() -> None:
    knots = [-1e-40, 0.0, 1e-40, 2e-40]
    found = QuantileInputs([knots], [[-1.0, 0.0, 0.5, 1.0]], [False])(torch.tensor([knots]).T)
    assert found.isfinite().all()
    assert -1 <= found.min() < 0 < found.max() == 1
    assert bool((found.diff(dim=0) >= 0).all())


def test_raw_features_are_as_they_are() -> None:
    inputs = RawInputs([-1.0, 7.0, 50.0])
    found = inputs(DENSE)
    assert torch.equal(found[~DENSE.isnan()], DENSE[~DENSE.isnan()])
    assert found[3].tolist() == [-1.0, 7.0, 2.0]
    assert not inputs.state_dict()


class _Taken(nn.Module):
    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, dense_BI: Tensor, embeddings_BFD: Tensor) -> Tensor:
        return self.network(dense_BI, embeddings_BFD)


@pytest.mark.parametrize("make", [standard, quantile, lambda: RawInputs([-1.0] * 3)])
def test_a_network_takes_them_with_it(make: Callable[[], NormalizedInputs]) -> None:
    network = DenseNetwork(num_dense=3, num_vectors=2, dim=4, bottom=[8, 4], top=[6, 1], inputs=make())
    embeddings = torch.randn(6, 2, 4)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.export.export(_Taken(network), (DENSE, embeddings), dynamic_shapes=({0: batch}, {0: batch}))
    for size in (1, 5, 6):
        expected = network(DENSE[:size], embeddings[:size])
        assert torch.isfinite(expected).all()
        # The same operations on the same numbers.
        torch.testing.assert_close(program.module()(DENSE[:size], embeddings[:size]), expected)
    again = DenseNetwork(num_dense=3, num_vectors=2, dim=4, bottom=[8, 4], top=[6, 1], inputs=make())
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(DENSE, embeddings), network(DENSE, embeddings))
