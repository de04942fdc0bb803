import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embeddings.compression.methods import Method
from embeddings.compression.module import CompressedEmbeddings
from models.dlrm import DLRM, DenseNetwork
from tests.embeddings.compression.tables import table_rows
from tests.embeddings.reference import to_kjt

METHODS = {"a": "int8", "b": "head2%+rq2x32", "c": "qr-mult8", "d": "pca4-int4", "e": "hash8", "f": "pq4x16"}
ROWS = 500


def _module(**kwargs) -> CompressedEmbeddings:
    tables = {name: Method.parse(method).fit(table_rows(ROWS)) for name, method in METHODS.items()}
    return CompressedEmbeddings(tables, **kwargs)


def _bags(batch_size: int, lengths: int | None, seed: int = 0) -> dict[str, list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)

    def bag() -> list[int]:
        size = int(torch.randint(5, (1,), generator=generator)) if lengths is None else lengths
        return torch.randint(ROWS, (size,), generator=generator).tolist()

    return {name: [bag() for _ in range(batch_size)] for name in METHODS}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("lengths", [1, None, 0])
def test_bags_are_sums_of_expanded_rows(lengths: int | None, trainable: bool):
    module, bags = _module(trainable=trainable), _bags(7, lengths)
    out = module(to_kjt(bags))
    assert out.shape == (7, len(METHODS), 16)
    assert out.dtype == torch.float32
    for column, (name, table) in enumerate(zip(METHODS, module.tables, strict=True)):
        whole = table.expand().double()
        for row, bag in enumerate(bags[name]):
            expected = whole[bag].sum(0)
            # Sums of at most 4 rows of float32 numbers below 4.
            assert torch.allclose(out[row, column].double(), expected, rtol=0, atol=4e-6)


def test_features_may_come_in_any_order_and_number():
    module, bags = _module(), _bags(5, None)
    more = {"other": [[1]] * 5, **dict(reversed(bags.items()))}
    assert torch.equal(module(to_kjt(more)), module(to_kjt(bags)))


def test_a_dlrm_takes_it_and_trains_it():
    torch.manual_seed(0)
    module = _module(trainable=True)
    fixed = {key: value.clone() for key, value in module.state_dict().items() if not value.is_floating_point()}
    dense = DenseNetwork(num_dense=3, num_features=len(METHODS), dim=16, bottom=[16], top=[8, 1])
    model = DLRM(module, dense)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    inputs, kjt = torch.randn(64, 3), to_kjt(_bags(64, None))
    labels = (torch.rand(64) < 0.3).float()
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs, kjt), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in fixed.items())
    assert len(fixed) == 4  # two of codes, bitmap and ranks


def test_a_state_dict_brings_back_the_same_module():
    first, second = _module(trainable=True), _module(trainable=True)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1)
    second.load_state_dict(first.state_dict())
    kjt = to_kjt(_bags(5, None))
    assert torch.equal(first(kjt), second(kjt))


def test_stored_numbers_are_not_expanded():
    module = _module()
    assert not list(module.parameters())
    assert module.num_bytes == sum(table.num_bytes for table in module.tables)
    assert module.num_bytes < ROWS * 16 * 4 * len(METHODS) / 3


def test_wrong_input_is_told():
    module, bags = _module(), _bags(3, 1)
    with pytest.raises(ValueError, match=r"feature c: id 500 must be at least 0 and below 500"):
        module(to_kjt({**bags, "c": [[1], [500], [2]]}))
    with pytest.raises(ValueError, match="the batch has no feature 'a'"):
        module(KeyedJaggedTensor(["b"], torch.tensor([1]), lengths=torch.tensor([1])))
    with pytest.raises(ValueError, match="same number of columns"):
        CompressedEmbeddings({n: Method.parse("int8").fit(table_rows(9, d)) for n, d in (("a", 4), ("b", 8))})
    with pytest.raises(ValueError, match="at least one table"):
        CompressedEmbeddings({})
