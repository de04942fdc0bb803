from dataclasses import replace

import pytest
import torch

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.compression.composed import compose
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.models.dlrm import DLRM, DenseNetwork
from tests.embeddings.compression.tables import table_rows
from tests.embeddings.reference import EVERYTHING, Bags, embed, make_bags, to_kjt

DIM = 8
METHODS = {"a": "int8", "b": "head2%+rq2x32", "c": "qr-mult8", "d": "pca4-int4", "e": "hash8", "f": "pq4x16"}
ROWS = 500
FEATURES = [FeatureTable(name, ROWS, 5) for name in METHODS]


def trained() -> CompositionalEmbeddings:
    return CompositionalEmbeddings(EVERYTHING, DIM, device="cpu", seed=3)


def weights_of(module: CompositionalEmbeddings) -> dict[str, torch.Tensor]:
    return {name.split(".")[-2]: weight.detach() for name, weight in module.named_parameters()}


def by(method: str, weights: dict[str, torch.Tensor]) -> dict[str, Compressed]:
    return {
        name: Method.parse(method).fit(TableRows(weight, torch.ones(len(weight)), name=name))
        for name, weight in weights.items()
    }


def test_every_kind_of_feature_reads_compressed_tables_in_place_of_its_own():
    weights = weights_of(trained())
    for method in ("fp32", "int8"):
        tables = by(method, weights)
        bags = make_bags(EVERYTHING, 6, seed=1)
        expanded = {name: table.expand().double() for name, table in tables.items()}
        expected = embed(EVERYTHING, expanded, bags, DIM)
        found = compose(EVERYTHING, DIM, tables)(to_kjt(bags))
        # float32 sums and products of at most 4 x 4 numbers below 1: some units in the last place.
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_what_is_trained_afterwards_are_the_numbers_and_not_the_codes():
    features = [FeatureTable("a", 40), FeatureTable("b", 60, 1, "qr", 4, "mult")]
    weights = weights_of(CompositionalEmbeddings(features, DIM, device="cpu", seed=0))
    module = compose(features, DIM, by("rq2x16", weights), trainable=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    loss = module(to_kjt(make_bags(features, 5, seed=2))).square().sum()
    loss.backward()
    parameters = dict(module.named_parameters())
    assert parameters
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters.values())
    torch.optim.SGD(parameters.values(), lr=0.1).step()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in parameters), name


def test_a_table_that_is_not_there_or_does_not_fit_is_named():
    features = [FeatureTable("a", 40)]
    weight = torch.ones(39, DIM)
    with pytest.raises(ValueError, match="table a is missing"):
        compose(features, DIM, {})
    with pytest.raises(ValueError, match="table a has 39 rows of 8, its feature needs 40 of 8"):
        compose(features, DIM, by("fp32", {"a": weight}))


def of_every_rule() -> dict[str, Compressed]:
    return {name: Method.parse(method).fit(table_rows(ROWS)) for name, method in METHODS.items()}


def bags_of(batch_size: int, lengths: int | None, seed: int = 0) -> Bags:
    generator = torch.Generator().manual_seed(seed)

    def bag() -> list[int]:
        size = int(torch.randint(5, (1,), generator=generator)) if lengths is None else lengths
        return torch.randint(ROWS, (size,), generator=generator).tolist()

    return {name: [bag() for _ in range(batch_size)] for name in METHODS}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("lengths", [1, None, 0])
def test_bags_of_any_rule_are_sums_of_expanded_rows(lengths: int | None, trainable: bool):
    tables, bags = of_every_rule(), bags_of(7, lengths)
    out = compose(FEATURES, 16, tables, trainable=trainable)(to_kjt(bags))
    assert out.shape == (7, len(METHODS), 16)
    assert out.dtype == torch.float32
    for column, (name, table) in enumerate(tables.items()):
        whole = table.expand().double()
        for row, bag in enumerate(bags[name]):
            # Sums of at most 4 rows of float32 numbers below 4.
            assert torch.allclose(out[row, column].double(), whole[bag].sum(0), rtol=0, atol=4e-6)


def test_features_may_come_in_any_order_and_number():
    module, bags = compose(FEATURES, 16, of_every_rule()), bags_of(5, None)
    more = {"other": [[1]] * 5, **dict(reversed(bags.items()))}
    assert torch.equal(module(to_kjt(more)), module(to_kjt(bags)))


def test_a_dlrm_takes_it_and_trains_it():
    torch.manual_seed(0)
    module = compose(FEATURES, 16, of_every_rule(), trainable=True)
    fixed = {key: value.clone() for key, value in module.state_dict().items() if not value.is_floating_point()}
    dense = DenseNetwork(num_dense=3, num_vectors=len(METHODS), dim=16, bottom=[16], top=[8, 1])
    model = DLRM(module, dense)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    inputs, kjt = torch.randn(64, 3), to_kjt(bags_of(64, None))
    labels = (torch.rand(64) < 0.3).float()
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs, kjt), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    state = module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in fixed.items())
    assert sum("codes" in key for key in fixed) == 2
    assert sum("bitmap" in key or "ranks" in key for key in fixed) == 2


def test_a_state_dict_brings_back_the_same_module():
    first, second = (compose(FEATURES, 16, of_every_rule(), trainable=True) for _ in range(2))
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1)
    second.load_state_dict(first.state_dict())
    kjt = to_kjt(bags_of(5, None))
    assert torch.equal(first(kjt), second(kjt))


def test_stored_numbers_are_not_expanded():
    tables = of_every_rule()
    module = compose(FEATURES, 16, tables)
    assert not list(module.parameters())
    held = sum(buffer.nbytes for buffer in module.bags.buffers())
    assert held == sum(table.num_bytes for table in tables.values()) < ROWS * 16 * 4 * len(METHODS) / 3


def test_ids_without_a_row_and_missing_features_are_told():
    module, bags = compose(FEATURES, 16, of_every_rule()), bags_of(3, 1)
    with pytest.raises(ValueError, match=r"feature c: id 500 must be at least 0 and below 500"):
        module(to_kjt({**bags, "c": [[1], [500], [2]]}))
    with pytest.raises(ValueError, match="the batch has no feature 'a'"):
        module(to_kjt({"b": bags["b"]}))


@pytest.mark.parametrize("max_ids", [1, 3])
def test_plain_lookups_give_what_torchrec_gives(max_ids: int):
    features = [replace(feature, max_ids=min(max_ids, feature.max_ids)) for feature in EVERYTHING]
    module = CompositionalEmbeddings(features, DIM, device="cpu", seed=3)
    weights = weights_of(module)
    tables = {table.name: StoredRows(weights[table.name], table.dim, 32) for table in module.tables}
    bags = to_kjt(make_bags(features, 16, seed=5))
    found, expected = compose(features, DIM, tables)(bags), module(bags).detach()
    if max_ids == 1:
        assert torch.equal(found, expected)
    else:  # sums of at most 3 rows below 2, in another order
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
