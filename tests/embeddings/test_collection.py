import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.tables import FeatureTable
from tests.embeddings.reference import (
    EVERYTHING,
    MIXED,
    MORE_MULTI_HOT,
    MORE_ONE_HOT,
    MULTI_HOT,
    ONE_HOT,
    SHARED,
    embed,
    make_bags,
    to_kjt,
)

DIM = 8
KINDS = {
    "one-hot": ONE_HOT,
    "multi-hot": MULTI_HOT,
    "mixed": MIXED,
    "more-one-hot": MORE_ONE_HOT,
    "more-multi-hot": MORE_MULTI_HOT,
    "everything": EVERYTHING,
    "shared": SHARED,
}


def _weights(module: CompositionalEmbeddings) -> dict[str, torch.Tensor]:
    return {name.split(".")[-2]: p for name, p in module.named_parameters()}


@pytest.mark.parametrize("features", KINDS.values(), ids=KINDS)
def test_forward_and_gradient_equal_a_float64_loop(features):
    module = CompositionalEmbeddings(features, DIM, device="cpu", seed=1)
    weights = _weights(module)
    generator = torch.Generator().manual_seed(0)
    for p in weights.values():
        p.data.uniform_(-1, 1, generator=generator)
    exact = {name: p.detach().double().requires_grad_() for name, p in weights.items()}
    bags = make_bags(features, batch_size=9, seed=2)
    out, expected = module(to_kjt(bags)), embed(features, exact, bags, DIM)
    assert out.shape == (9, module.num_vectors, DIM)
    # A sum of at most 4 products, each at most 1: 8 roundings of numbers up to 4, each below 4 * 2**-24. A path's
    # numbers are larger, 8 * 8 products of three, and take 20 roundings of up to 4 * 64 * 2**-24.
    paths = any(f.combination == "path" for f in features)
    assert torch.allclose(out.double(), expected, rtol=0, atol=3e-4 if paths else 2e-6)
    upstream = torch.rand(out.shape, generator=generator)
    out.backward(upstream)
    expected.backward(upstream.double())
    for name, p in weights.items():
        # A row can occur 36 times: 72 roundings of numbers up to 36, each below 36 * 2**-24, most of them far smaller.
        # A path's are larger as above.
        assert torch.allclose(p.grad.double(), exact[name].grad, rtol=0, atol=3e-3 if paths else 2e-5), name


def test_an_empty_bag_gives_zero():
    module = CompositionalEmbeddings(MULTI_HOT, DIM, device="cpu")
    empty = to_kjt({f.name: [[], [1]] for f in MULTI_HOT})
    out = module(empty)
    assert out[0].abs().max() == 0
    assert (out[1].abs().amax(dim=1) > 0).all()
    assert module(to_kjt({f.name: [[], []] for f in MULTI_HOT})).abs().max() == 0


def test_ids_that_share_one_row_differ_in_the_other():
    for operation in ("mult", "add", "concat"):
        module = CompositionalEmbeddings([FeatureTable("a", 97, 1, "qr", 7, operation)], DIM, device="cpu")
        vectors = module(to_kjt({"a": [[i] for i in range(97)]}))[:, 0]
        assert vectors.unique(dim=0).shape[0] == 97


@pytest.mark.parametrize("features", [ONE_HOT, MULTI_HOT, [FeatureTable("a", 9), FeatureTable("b", 9, 3)]])
def test_the_order_of_keys_in_the_batch_does_not_matter(features):
    module = CompositionalEmbeddings(features, DIM, device="cpu")
    bags = make_bags(features, 5, seed=0)
    other = {"unused": [[77]] * 5} | dict(reversed(bags.items()))
    assert torch.equal(module(to_kjt(bags)), module(to_kjt(other)))
    assert torch.equal(module(to_kjt(bags)), module(to_kjt(bags)))


def test_batches_of_other_sizes_and_lengths_follow_each_other():
    features = [FeatureTable("a", 50, 3, "qr", 4, "add"), FeatureTable("b", 50, 3, "hash", 4)]
    module = CompositionalEmbeddings(features, DIM, device="cpu")
    exact = {name: p.detach().double() for name, p in _weights(module).items()}
    one_hot = {"a": [[1], [2]], "b": [[3], [4]]}
    # As many ids as bags, but not one in each.
    ragged = {"a": [[1, 2], []], "b": [[3], [4]]}
    for bags in (one_hot, ragged, make_bags(features, 6, 0), {"a": [[5]], "b": [[6]]}, one_hot, ragged):
        expected = embed(features, exact, bags, DIM)
        assert torch.allclose(module(to_kjt(bags)).double(), expected, rtol=0, atol=1e-6)


def test_a_loader_may_refill_the_same_memory():
    module = CompositionalEmbeddings([FeatureTable("a", 9, 2), FeatureTable("b", 9, 2)], DIM, device="cpu")
    kjt = to_kjt({"a": [[1], [2]], "b": [[3], [4]]})
    module(kjt)
    kjt.lengths().copy_(torch.tensor([2, 0, 1, 1]))
    fresh = KeyedJaggedTensor(kjt.keys(), kjt.values(), lengths=kjt.lengths())
    expected = module(to_kjt({"a": [[1, 2], []], "b": [[3], [4]]}))
    assert torch.equal(module(fresh), expected)


def test_initial_values_follow_the_seed():
    def weights(seed: int) -> torch.Tensor:
        module = CompositionalEmbeddings(ONE_HOT, DIM, device="cpu", seed=seed)
        return torch.cat([p.flatten() for p in module.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_int32_ids_are_accepted():
    module = CompositionalEmbeddings(MULTI_HOT, DIM, device="cpu")
    kjt = to_kjt(make_bags(MULTI_HOT, 4, 0))
    narrow = KeyedJaggedTensor(kjt.keys(), kjt.values().int(), lengths=kjt.lengths())
    assert torch.equal(module(kjt), module(narrow))


def test_a_missing_feature_is_named():
    module = CompositionalEmbeddings([FeatureTable("a", 9), FeatureTable("b", 9)], DIM, device="cpu")
    with pytest.raises(ValueError, match="the batch has no feature 'b', only a"):
        module(to_kjt({"a": [[1]]}))


@pytest.mark.parametrize("bags", [{"a": [[1], [9]], "b": [[0], [0]]}, {"a": [[], [1, 9]], "b": [[0], [0]]}])
def test_an_id_without_a_row_is_named(bags):
    features = [FeatureTable("a", 9, 2, "hash", 3), FeatureTable("b", 9)]
    module = CompositionalEmbeddings(features, DIM, device="cpu")
    with pytest.raises(ValueError, match=r"feature a: id 9 must be at least 0 and below 9.*; 1 such ids in this batch"):
        module(to_kjt(bags))
    bags["a"][1][-1] = -1
    with pytest.raises(ValueError, match="feature a: id -1 must"):
        module(to_kjt(bags))


def test_a_bag_larger_than_declared_is_named():
    # Pooling before multiplying would be wrong for it, and nothing would show.
    module = CompositionalEmbeddings([FeatureTable("a", 9, 1, "qr", 3, "mult")], DIM, device="cpu")
    with pytest.raises(ValueError, match="feature a: an example has 2 ids, more than max_ids=1"):
        module(to_kjt({"a": [[1, 2], [3]]}))


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="feature names must be unique, with at least one"):
        CompositionalEmbeddings([], DIM)
    with pytest.raises(ValueError, match="feature names must be unique"):
        CompositionalEmbeddings([FeatureTable("a", 9), FeatureTable("a", 9)], DIM)
    with pytest.raises(ValueError, match="dim/2=6"):
        CompositionalEmbeddings([FeatureTable("a", 9, 1, "qr", 2, "concat")], 12)
