"""Muon against the singular value decomposition and torch's AdamW."""

import math

import pytest
import torch

from dlrmctl.optim.muon import Muon, polar_factor


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (40, 40)])
def test_the_factor_has_the_singular_vectors_and_values_near_1(shape: tuple[int, int]):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ polar_factor(matrix) @ vh.T
    values = found.diagonal()
    assert (found - torch.diag(values)).abs().max() < 1e-10  # the same singular vectors
    large = s > 0.002 * matrix.norm()
    assert large.sum() >= len(s) - 1
    assert values[large].min() > 0.68
    assert values.max() < 1.21


def test_further_cubic_steps_would_end_at_the_polar_factor():
    """The factor is a point from which the plain iteration x <- 1.5 x - 0.5 x^3 goes to U V^T."""
    matrix = torch.randn(8, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    x = polar_factor(matrix)
    for _ in range(10):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    assert torch.allclose(x, u @ vh, rtol=0, atol=1e-10)


def test_a_matrix_of_zeros_or_of_tiny_numbers_is_no_trouble():
    assert polar_factor(torch.zeros(3, 5)).abs().max() == 0
    assert polar_factor(torch.full((3, 5), 1e-30)).isfinite().all()


def test_a_step_is_the_momentum_s_factor_and_other_weights_take_adamw_s():
    generator = torch.Generator().manual_seed(3)
    matrix, bias = (torch.nn.Parameter(torch.randn(n, generator=generator).double()) for n in ((6, 9), (6,)))
    w, twin = matrix.detach().clone(), torch.nn.Parameter(bias.detach().clone())
    ours = Muon([matrix], [bias], lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW([twin], lr=0.02, weight_decay=0.1)
    m = torch.zeros_like(w)
    for _ in range(10):
        matrix.grad, bias.grad = (torch.randn(n, generator=generator).double() for n in ((6, 9), (6,)))
        twin.grad = bias.grad.clone()
        ours.step()
        adamw.step()
        m = 0.95 * m + 0.05 * matrix.grad
        direction = polar_factor(0.95 * m + 0.05 * matrix.grad)
        w = (1 - 0.02 * 0.1) * w - 0.02 * 0.2 * math.sqrt(9) * direction
    assert torch.allclose(matrix, w, rtol=0, atol=1e-12)
    assert torch.allclose(bias, twin, rtol=0, atol=1e-12)


def test_a_matrix_steps_by_a_fifth_of_the_rate_in_the_root_mean_square():
    matrix = torch.nn.Parameter(torch.zeros(64, 128))
    matrix.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(4))
    Muon([matrix], lr=1.0).step()
    # All 64 singular values near 1: the norm is 8 times the scale 0.2 sqrt(128), over 64 x 128 weights.
    assert 0.7 * 0.2 < matrix.square().mean().sqrt() < 1.21 * 0.2


def test_only_matrices_are_orthogonalized():
    with pytest.raises(ValueError, match=r"\(3,\) is not a matrix"):
        Muon([torch.nn.Parameter(torch.ones(3))])
