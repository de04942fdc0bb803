import pytest
import torch

from embeddings.collection import CompositionalEmbeddings
from embeddings.compression.composed import compose
from embeddings.compression.methods import Method
from embeddings.compression.rules import Compressed
from embeddings.compression.source import TableRows
from embeddings.tables import FeatureTable
from tests.embeddings.reference import EVERYTHING, embed, make_bags, to_kjt

DIM = 8


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
