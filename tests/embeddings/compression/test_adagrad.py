import pytest
import torch
from torch import nn

from dlrmctl.embeddings.compression.adagrad import RowwiseAdagrad, Trained, shared_state
from dlrmctl.embeddings.compression.fits.methods import Method
from tests.embeddings.compression.tables import table_rows
from tests.embeddings.reference import rowwise_adagrad

ROWS, DIM = 37, 8
NAMES = [
    *("fp32", "int8", "pca3-int8", "hash5-int8", "qr-mult4-int8", "qr-mult4q-fp16", "qr-add4", "qr-concat4-fp16"),
    *("rq3x8", "pq2x8", "head20%+rq2x8", "head20%-int4+qr-mult3", "head10%+pca2"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_a_part_is_what_gradients_of_these_sizes_leave_in_it(name: str):
    table = Method.parse(name).fit(table_rows(ROWS, DIM))
    twin = table.trainable()
    sums = torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    # Independent gradients of mean square s in the columns of a row: their squares add up, derivative by derivative.
    expected = {key: torch.zeros(_height(value)) for key, value in twin.named_parameters()}
    for row in range(ROWS):
        for value in twin(torch.tensor([row]))[0]:
            twin.zero_grad()
            value.backward(retain_graph=True)
            for key, parameter in twin.named_parameters():
                if parameter.grad is not None:
                    expected[key] += sums[row] * parameter.grad.square().view(_height(parameter), -1).mean(1)
    found = shared_state(table, sums)
    assert found.keys() == expected.keys()
    for key, state in found.items():
        # float32 sums of at most 37 x 8 products, in another order.
        torch.testing.assert_close(state, expected[key], rtol=1e-4, atol=1e-6)


def _height(parameter: torch.Tensor) -> int:
    return len(parameter) if parameter.dim() == 2 else 1


@pytest.mark.parametrize("sparse", [False, True])
def test_steps_are_those_of_row_wise_adagrad(sparse: bool):
    generator = torch.Generator().manual_seed(1)
    weight, state = torch.randn(9, 4, generator=generator), torch.rand(9, generator=generator)
    slow, slow_state = weight.double(), state.double()
    parameter = nn.Parameter(weight.clone())
    optimizer = RowwiseAdagrad([Trained(parameter, state.clone(), 0.1)], eps=1e-6)
    for _ in range(5):
        ids = torch.randint(6, (8,), generator=generator)  # repeated, and never 6 to 8
        wanted = torch.randn(8, 4, generator=generator)
        (nn.functional.embedding(ids, parameter, sparse=sparse) * wanted).sum().backward()
        optimizer.step(0.5)
        gradient = torch.zeros(9, 4, dtype=torch.float64).index_add_(0, ids, wanted.double())
        rowwise_adagrad(slow, slow_state, gradient, 0.05, 1e-6)
    # Some float32 roundings of numbers near 1 per step.
    torch.testing.assert_close(parameter.detach().double(), slow, rtol=0, atol=5e-6)
    assert torch.equal(parameter.detach()[6:], weight[6:])
    assert parameter.grad is None


def test_sums_of_another_table_are_refused():
    with pytest.raises(ValueError, match="36 sums for a table of 37 rows"):
        shared_state(Method.parse("int8").fit(table_rows(ROWS, DIM)), torch.ones(36))
