import pytest
import torch
from torch import nn

from dlrmctl.models import DLRM, DenseNetwork
from dlrmctl.models.interaction import CatInteraction, CrossInteraction, DotInteraction
from dlrmctl.models.mlp import MLP, Dropout, Linear
from tests import reference


def _network(interaction: str = "dot") -> DenseNetwork:
    return DenseNetwork(
        num_dense=5,
        num_vectors=3,
        dim=4,
        bottom=[8, 4],
        top=[6, 1],
        interaction=interaction,
        cross_layers=2,
        cross_rank=3,
        generator=torch.Generator().manual_seed(0),
    ).double()


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(7, 3, 4, generator=generator, dtype=torch.float64)
    return dense, embeddings


def _reference_logits(network: DenseNetwork, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    def parameters(mlp: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [layer.weight for layer in mlp.layers], [layer.bias for layer in mlp.layers]

    bottom = reference.mlp(dense, *parameters(network.bottom), last_relu=True)
    if isinstance(network.interaction, DotInteraction):
        joined = reference.dot_interaction(bottom, embeddings)
    else:
        joined = torch.cat([bottom, *embeddings.unbind(1)], dim=1)
    if isinstance(network.interaction, CrossInteraction):
        down, up = network.interaction.down, network.interaction.up
        matrices = [[layer.weight for layer in down], [layer.weight for layer in up], [layer.bias for layer in up]]
        joined = reference.cross_layers(joined, *matrices)
    return reference.mlp(joined, *parameters(network.top), last_relu=False).squeeze(1)


@pytest.mark.parametrize("interaction", ["dot", "cat", "dcn"])
def test_forward_and_gradients_equal_the_float64_reference(interaction: str):
    network = _network(interaction)
    for layer in network.interaction.up if interaction == "dcn" else []:
        nn.init.normal_(layer.bias)  # 0 at first
    dense, embeddings = _inputs()
    ours_in = [dense.clone().requires_grad_(), embeddings.clone().requires_grad_()]
    theirs_in = [dense.clone().requires_grad_(), embeddings.clone().requires_grad_()]
    ours = network(*ours_in)
    theirs = _reference_logits(network, *theirs_in)
    # float64 on both sides, sums of at most 10 terms in another order: a few units in the last place.
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)

    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    parameters = list(network.parameters())
    ours_grads = torch.autograd.grad((ours * weights).sum(), [*ours_in, *parameters])
    theirs_grads = torch.autograd.grad((theirs * weights).sum(), [*theirs_in, *parameters])
    for a, b in zip(ours_grads, theirs_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_without_dense_features_every_example_starts_from_one_learned_vector():
    network = DenseNetwork(num_dense=0, num_vectors=3, dim=4, bottom=[8, 4], top=[6, 1]).double()
    _, embeddings = _inputs()
    logits = network(torch.empty(7, 0, dtype=torch.float64), embeddings)
    [vector] = network.bottom.parameters()
    joined = reference.dot_interaction(vector.expand(7, 4), embeddings)
    layers = network.top.layers
    expected = reference.mlp(joined, [x.weight for x in layers], [x.bias for x in layers], last_relu=False).squeeze(1)
    # float64 on both sides, sums of at most 10 terms in another order: a few units in the last place.
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-14)
    logits.sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0


def test_dot_interaction_passes_gradcheck():
    dense, embeddings = _inputs()
    interaction = DotInteraction(3, 4)
    assert torch.autograd.gradcheck(interaction, (dense[:, :4].clone().requires_grad_(), embeddings.requires_grad_()))


def test_interactions_say_how_wide_they_are():
    dense, embeddings = _inputs()
    for module in (DotInteraction(3, 4), CatInteraction(3, 4), CrossInteraction(3, 4, layers=2, rank=3).double()):
        assert module(dense[:, :4], embeddings).shape == (7, module.out_features)


def test_bf16_autocast_keeps_the_logits_close():
    network = _network().float()
    dense, embeddings = (x.float() for x in _inputs())
    exact = network(dense, embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(dense, embeddings.requires_grad_())
    rough.sum().backward()
    # bf16 keeps 8 bits: 4 layers and a dot product, each off by about 2**-8 of the values' scale.
    assert (rough - exact).abs().max() < 4 * 2**-8 * exact.abs().max() + 0.05
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bottom": [8, 5]}, "ends in 5 units but the embeddings have 4 columns"),
        ({"top": [6, 2]}, "ends in 2 units"),
        ({"interaction": "star"}, "interaction='star' must be one of dot, cat, dcn"),
        ({"interaction": "dcn", "cross_rank": 0}, "rank=0 of cross layers must be at least 1"),
        ({"top": [0, 1]}, "at least one unit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict, message: str):
    arguments = {"num_dense": 5, "num_vectors": 3, "dim": 4, "bottom": [8, 4], "top": [6, 1]} | change
    with pytest.raises(ValueError, match=message):
        DenseNetwork(**arguments)


@pytest.mark.parametrize("inputs", [13, 32, 64, 367])
def test_a_linear_layer_has_the_gradients_of_torch(inputs: int):
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, 48), nn.Linear(inputs, 48)
    theirs.load_state_dict(ours.state_dict())
    x, grad = torch.randn(129, inputs), torch.randn(129, 48)
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        output = layer(given)
        output.backward(grad)
        found.append([output, given.grad, layer.weight.grad, layer.bias.grad])
    # float32 sums of at most 129 products of normal numbers, perhaps in another order.
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert ours.weight.grad.is_contiguous()


def test_same_generator_same_weights():
    for a, b in zip(_network().parameters(), _network().parameters(), strict=True):
        assert torch.equal(a, b)


def test_dlrm_hands_the_sparse_input_to_its_embeddings():
    dense, embeddings = _inputs()
    network = _network()
    assert torch.equal(DLRM(nn.Identity(), network)(dense, embeddings), network(dense, embeddings))


def test_layers_are_normalized_before_their_relu():
    mlp = MLP(5, [4, 3], layer_norm=True).double()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x
    for layer, norm in zip(mlp.layers, mlp.norms or [], strict=True):
        nn.init.uniform_(norm.weight)
        expected = expected @ layer.weight.T + layer.bias
        centered = expected - expected.mean(1, keepdim=True)
        expected = (centered / (centered.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight).clamp(min=0)
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-14)


def test_dropout_is_on_in_its_block_alone_and_keeps_the_mean():
    dropout = Dropout(0.25)
    x = torch.ones(400, 400)
    assert dropout(x) is x
    dropout.generator = torch.Generator().manual_seed(0)
    dropped = dropout(x)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)  # 7 standard errors of 160,000 draws

    network = DenseNetwork(num_dense=5, num_vectors=3, dim=4, bottom=[8, 4], top=[6, 1], dropout=0.5)
    dense, embeddings = (x.float() for x in _inputs())
    plain = network(dense, embeddings)
    with network.dropping(1):
        first = network(dense, embeddings)
    with network.dropping(1):
        again = network(dense, embeddings)
    with network.dropping(2):
        other = network(dense, embeddings)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    assert torch.equal(network(dense, embeddings), plain)
