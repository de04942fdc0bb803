import torch

from dlrmctl.embeddings.path import HIDDEN, PATH_HALF_WIDTH, PATH_NOISE, follow_path, map_width, write_path_gradients


def test_a_path_is_a_small_residual_network_per_vector():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 12, generator=generator, dtype=torch.float64) - 0.5
    maps = torch.rand(5, map_width(12), generator=generator, dtype=torch.float64) - 0.5
    for one, weights, out in zip(x, maps, follow_path(x, maps), strict=True):
        down, up = weights[: HIDDEN * 12].view(HIDDEN, 12), weights[HIDDEN * 12 :].view(HIDDEN, 12)
        hidden = torch.relu(down @ one / 12**0.5)
        # Sums of 20 float64 numbers below 1.
        assert torch.allclose(out, one + up.T @ hidden / HIDDEN**0.5, rtol=0, atol=1e-14)


def test_a_network_of_zeros_changes_nothing():
    x = torch.rand(3, 8)
    assert torch.equal(follow_path(x, torch.zeros(3, map_width(8))), x)


def test_gradients_are_those_of_autograd():
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.rand(3, 5, 8, generator=generator, dtype=torch.float64) - 0.5 for _ in range(2))
    maps = torch.rand(3, 5, map_width(8), generator=generator, dtype=torch.float64) - 0.5
    expected = torch.autograd.grad(follow_path(x.requires_grad_(), maps.requires_grad_()), (x, maps), grad)
    found = torch.full_like(x, 9), torch.full_like(maps, 9)
    with torch.no_grad():
        write_path_gradients(x, maps, grad, x_grad=found[0], maps_grad=found[1])
    for ours, theirs in zip(found, expected, strict=True):
        # Sums of at most 8 float64 numbers below 1.
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-15)


def test_networks_of_the_initial_width_add_the_variance_they_should():
    dim, samples = 16, 20_000
    generator = torch.Generator().manual_seed(1)
    width = PATH_HALF_WIDTH
    x = torch.empty(samples, dim).uniform_(-1, 1, generator=generator)
    maps = torch.empty(samples, map_width(dim)).uniform_(-width, width, generator=generator)
    squares = follow_path(x, maps).square().mean(dim=1)
    # Samples are independent: six standard errors of their mean, 2 % of it.
    assert abs(float(squares.mean()) - (1 + PATH_NOISE) / 3) < 6 * float(squares.std()) / samples**0.5
    assert float(squares.std()) / samples**0.5 < 0.004
