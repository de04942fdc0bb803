"""Roots of matrices that real training produces at its worst, by every method, in float32 and float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dlrmctl.optim.shampoo import DistributedShampoo, RootInverse
from dlrmctl.optim.shampoo import roots as roots_module
from dlrmctl.optim.shampoo.roots import (
    coupled_inverse_root,
    eigh,
    inverse_root,
    iterable_exponent,
    regularization,
    side_by_side,
    turned_basis,
)

METHODS = [
    RootInverse("eigh"),
    RootInverse("newton"),
    RootInverse("higher_order"),
    RootInverse("higher_order", order=5),
    RootInverse("pseudo_inverse"),
]
NAMES = ["eigh", "newton", "higher order 3", "higher order 5", "pseudo-inverse"]


def _random_basis(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


def _with_spectrum(values: Tensor) -> Tensor:
    basis = _random_basis(len(values))
    return (basis * values.double()) @ basis.T


HOSTILE: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(5, 5, dtype=torch.float64),
    "singular: one gradient of 16 rows": lambda: _with_spectrum(torch.tensor([3.0] + [0.0] * 15)),
    "half rank": lambda: _with_spectrum(torch.tensor([1.0] * 8 + [0.0] * 8)),
    "indefinite by rounding": lambda: _with_spectrum(torch.tensor([1.0] * 8 + [-1e-7] * 8)),
    "30 decades": lambda: _with_spectrum(torch.logspace(-15, 15, 31, dtype=torch.float64)),
    "repeated eigenvalues": lambda: _with_spectrum(torch.tensor([2.0] * 10 + [5.0] * 10)),
    "identity": lambda: torch.eye(7, dtype=torch.float64),
    "1 x 1": lambda: torch.tensor([[4.0]], dtype=torch.float64),
    "tiny": lambda: 1e-30 * _with_spectrum(torch.linspace(1, 2, 6)),
    "huge": lambda: 1e30 * _with_spectrum(torch.linspace(1, 2, 6)),
    "rows of zeros": lambda: torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0.25, 0.5, 1 / 6])
@pytest.mark.parametrize("config", METHODS, ids=NAMES)
@pytest.mark.parametrize("name", HOSTILE)
def test_every_root_is_finite_symmetric_and_positive(
    name: str, config: RootInverse, exponent: float, dtype: torch.dtype
) -> None:
    matrix = HOSTILE[name]().to(dtype)
    epsilon = regularization(matrix[None], None, 1e-4)
    root = inverse_root(matrix[None], exponent, epsilon, config)[0]
    assert root.isfinite().all()
    eps = torch.finfo(dtype).eps
    largest = float(root.abs().max())
    # One product of rounded matrices.
    assert float((root - root.T).abs().max()) <= len(root) * eps * largest
    lowest = float(torch.linalg.eigvalsh(root.double()).min())
    # The smallest is at least (1e4 n) ** -exponent of the largest, before iterations lose some of it to the condition.
    assert lowest >= -1e2 * len(root) * eps * largest


@pytest.mark.parametrize("config", METHODS[:4], ids=NAMES[:4])
@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_every_method_finds_the_same_root(config: RootInverse, exponent: float) -> None:
    values = torch.logspace(-3, 2, 24, dtype=torch.float64)
    matrix = _with_spectrum(values)
    expected = _with_spectrum((values + 1e-4) ** -exponent)
    root = inverse_root(matrix[None], exponent, torch.tensor([1e-4], dtype=torch.float64), config)[0]
    # A condition of 1e5; the iterations stop at 1e-6.
    torch.testing.assert_close(root, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_power_of_a_root_by_higher_order_iterations() -> None:
    values = torch.linspace(1, 50, 9, dtype=torch.float64)
    epsilon = torch.zeros(1, dtype=torch.float64)
    root = inverse_root(_with_spectrum(values)[None], 2 / 3, epsilon, RootInverse("higher_order", tolerance=1e-12))
    torch.testing.assert_close(root[0], _with_spectrum(values ** (-2 / 3)), rtol=1e-9, atol=1e-10)
    assert iterable_exponent(2 / 3, order=3) is not None
    assert iterable_exponent(2 / 3, order=None) is None
    assert iterable_exponent(math.pi / 10, order=3) is None


def test_a_stack_gives_every_matrix_its_own_root() -> None:
    stack = torch.stack([_with_spectrum(torch.linspace(1, top, 6)) for top in (2, 100, 1e5)])
    epsilon = torch.full((3,), 1e-3, dtype=torch.float64)
    for config in METHODS[:4]:
        together = inverse_root(stack, 0.25, epsilon, config)
        for matrix, eps, root in zip(stack, epsilon, together, strict=True):
            alone = inverse_root(matrix[None], 0.25, eps[None], config)[0]
            torch.testing.assert_close(root, alone, rtol=1e-9, atol=1e-12)  # other blocks only add frozen steps


def test_1024_by_1024() -> None:
    """Rank 64 and noise, in float32: residual of the root within what rounding of that condition allows."""
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(1024, 64, generator=generator)
    matrix = thin @ thin.T
    epsilon = regularization(matrix[None], None, 1e-3)
    root = inverse_root(matrix[None], 0.25, epsilon, RootInverse())[0]
    damped = matrix.double() + float(epsilon) * torch.eye(1024, dtype=torch.float64)
    residual = torch.linalg.matrix_power(root.double(), 4) @ damped - torch.eye(1024, dtype=torch.float64)
    # 64 eigenvalues of about 1024 over 0.064: a condition of 2e4, times n * eps of float32 = 1e-4.
    assert float(torch.linalg.matrix_norm(residual, 2)) < 2e4 * 1e-4


def test_the_pseudo_inverse_has_the_rank_of_its_matrix() -> None:
    matrix = _with_spectrum(torch.tensor([4.0, 9.0, 0.0, 1e-20]))
    root = inverse_root(matrix[None], 0.5, torch.ones(1), RootInverse("pseudo_inverse"))[0]
    values = torch.linalg.eigvalsh(root)
    torch.testing.assert_close(values, torch.tensor([0, 0, 1 / 3, 0.5], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    coarse = RootInverse("pseudo_inverse", rank_tolerance=0.5)
    values = torch.linalg.eigvalsh(inverse_root(matrix[None], 0.5, torch.ones(1), coarse)[0])
    torch.testing.assert_close(values, torch.tensor([0, 0, 0, 1 / 3], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_iterations_that_fail_say_so_and_eigh_takes_over() -> None:
    """Newton on a matrix that is singular in float32: its own answer is refused, eigh's is used."""
    matrix = _with_spectrum(torch.logspace(-12, 0, 16, dtype=torch.float64)).float()[None]
    fraction = iterable_exponent(0.25, order=None)
    assert fraction is not None
    _, right = coupled_inverse_root(matrix, fraction, order=None, max_iterations=100, tolerance=1e-6)
    assert not right.any()
    epsilon = torch.tensor([1e-9])
    for method in ("newton", "higher_order"):
        root = inverse_root(matrix, 0.25, epsilon, RootInverse(method))
        torch.testing.assert_close(root, inverse_root(matrix, 0.25, epsilon, RootInverse()), rtol=0, atol=0)
    starved = inverse_root(matrix, 0.25, epsilon, RootInverse("newton", max_iterations=1))
    torch.testing.assert_close(starved, inverse_root(matrix, 0.25, epsilon, RootInverse()), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("config", METHODS, ids=NAMES)
def test_a_matrix_that_is_not_finite_has_no_root_and_raises_nothing(config: RootInverse, bad: float) -> None:
    stack = torch.eye(4).repeat(3, 1, 1)
    stack[1, 2, 2] = bad
    root = inverse_root(stack, 0.25, torch.full((3,), 1e-4), config)
    assert root[[0, 2]].isfinite().all()
    assert not root[1].isfinite().all()


def test_a_failure_in_float32_is_tried_again_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.linalg.eigh

    def fails_in_float32(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return original(matrix)

    matrix = _with_spectrum(torch.linspace(1, 2, 5)).float()[None]
    expected = inverse_root(matrix, 0.25, torch.full((1,), 1e-4), RootInverse())
    monkeypatch.setattr(roots_module.torch.linalg, "eigh", fails_in_float32)
    values, vectors = eigh(matrix)
    assert values.dtype == vectors.dtype == torch.float32
    root = inverse_root(matrix, 0.25, torch.full((1,), 1e-4), RootInverse())
    torch.testing.assert_close(root, expected, rtol=1e-5, atol=1e-6)  # rounding of float32


def test_qr_iterations_keep_a_basis_orthogonal_and_stop_within_the_tolerance() -> None:
    factor = _with_spectrum(torch.tensor([1.0, 2.0, 4.0, 8.0]))[None]
    basis = torch.eye(4, dtype=torch.float64)[None]
    values, basis = turned_basis(factor, basis, max_iterations=200, tolerance=1e-9)
    torch.testing.assert_close(values[0], torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(basis[0].T @ basis[0], torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    again_values, again = turned_basis(factor, basis, max_iterations=5, tolerance=1e-3)
    assert torch.equal(again, basis)
    torch.testing.assert_close(again_values, values)


def test_the_higher_order_iteration_has_a_relative_epsilon_of_its_own() -> None:
    """A share of the largest row sum, where that is more than the epsilon of all methods."""
    factor = _with_spectrum(torch.tensor([0.0, 1.0, 4.0, 8.0]))[None]
    epsilon = torch.full((1,), 1e-6, dtype=torch.float64)
    config = RootInverse("higher_order", tolerance=1e-13, rel_epsilon=1e-2)
    share = 1e-2 * factor.abs().sum(-1).amax(-1)
    expected = inverse_root(factor, 0.25, share, RootInverse())
    torch.testing.assert_close(inverse_root(factor, 0.25, epsilon, config), expected, rtol=1e-9, atol=1e-10)
    larger = inverse_root(factor, 0.25, torch.ones_like(epsilon), config)
    torch.testing.assert_close(
        larger, inverse_root(factor, 0.25, torch.ones_like(epsilon), RootInverse()), rtol=1e-9, atol=1e-10
    )
    with pytest.raises(ValueError, match=r"rel_epsilon=0\.1 must be"):
        RootInverse("newton", rel_epsilon=0.1)


@pytest.mark.parametrize("method", ["newton", "higher_order"])
def test_training_by_iterations_equals_training_by_eigh(method: str) -> None:
    torch.manual_seed(0)
    reached = []
    for config in (RootInverse(), RootInverse(method, tolerance=1e-12)):
        generator = torch.Generator().manual_seed(0)
        weight = Parameter(torch.ones(6, 5, dtype=torch.float64))
        optimizer = DistributedShampoo([weight], precondition_frequency=1, epsilon=1e-3, preconditioner_config=config)
        for _ in range(10):
            weight.grad = torch.randn(6, 5, generator=generator, dtype=torch.float64)
            optimizer.step()
        reached.append(weight.detach())
    torch.testing.assert_close(reached[0], reached[1], rtol=1e-8, atol=1e-9)  # conditions up to 1e4


@pytest.mark.parametrize("exponent", [0.3, 2 / 3])
def test_an_exponent_that_newton_cannot_do_is_refused(exponent: float) -> None:
    settings = {"preconditioner_config": RootInverse("newton"), "inverse_exponent_override": exponent}
    with pytest.raises(ValueError, match="method 'newton' needs exponents 1 / p"):
        DistributedShampoo([Parameter(torch.ones(2, 2))], **settings)


def test_roots_do_not_suffer_from_rounded_matrix_products() -> None:
    """A program may let products of float32 matrices round to bfloat16; roots are computed in float64 then."""
    weight = Parameter(torch.ones(4, 4))
    optimizer = DistributedShampoo([weight], precondition_frequency=1)
    weight.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    seen: list[torch.dtype] = []
    original = roots_module.eigh
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    roots_module.eigh = lambda matrix: (seen.append(matrix.dtype), original(matrix))[1]  # type: ignore[assignment]
    try:
        optimizer.step()
    finally:
        roots_module.eigh = original
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {torch.float64}


def test_roots_do_not_depend_on_the_number_of_threads() -> None:
    matrices = [_with_spectrum(torch.logspace(-4, 0, n)).float() for n in (128, 128, 96, 40)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(side_by_side([lambda m=matrix: eigh(m)[1] for matrix in matrices]))
            assert side_by_side([torch.get_num_threads] * 4) == [1] * 4
            assert torch.get_num_threads() == threads
            with pytest.raises(ZeroDivisionError):
                side_by_side([lambda: 1 // 0, lambda: 1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
