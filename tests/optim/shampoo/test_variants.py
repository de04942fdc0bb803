"""Every way to precondition equals the slow loops of reference.py: KL, eigendecomposed, one-sided, scaled, decayed."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from dlrmctl.optim.shampoo import AdaGradGrafting, DistributedShampoo, Eigendecomposed, EigenvalueCorrected, RootInverse
from dlrmctl.optim.shampoo.settings import largest_ratio
from tests.optim.shampoo.reference import ReferenceShampoo

SHAPES = [(7, 5), (7,), (4, 3, 2), (2, 1, 3, 5), (9, 9)]
COMMON: dict[str, Any] = {"lr": 0.01, "betas": (0.0, 0.95), "epsilon": 1e-4, "precondition_frequency": 2}


def _compare(
    ours: dict[str, Any],
    slow: dict[str, Any],
    *,
    shapes: list[tuple[int, ...]] = SHAPES,
    num_steps: int = 8,
    rtol: float = 1e-10,
    lrs: list[float] | None = None,
    small: float = 1.0,
) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    params = [Parameter(start.clone()) for start in starts]
    optimizer = DistributedShampoo(params, **(COMMON | {"grafting_config": None} | ours))
    start = optimizer.param_groups[0]["start_preconditioning_step"]
    reference = ReferenceShampoo([s.clone() for s in starts], **(COMMON | {"start_preconditioning_step": start} | slow))
    for step in range(num_steps):
        if lrs is not None:
            optimizer.param_groups[0]["lr"] = reference.s["lr"] = lrs[step]
        grads = [small * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        reference.step(list(grads))
        for param, expected in zip(params, reference.weights, strict=True):
            torch.testing.assert_close(param.detach(), expected, rtol=rtol, atol=rtol / 10)
    assert optimizer.num_failed_roots == 0


# Tolerances: rounding of 1e-16 in matrices of condition up to 1e5.
@pytest.mark.parametrize("grafted", [False, True])
@pytest.mark.parametrize("statistics", ["kl", "kl_mean"])
@pytest.mark.parametrize("config", [RootInverse, Eigendecomposed])
def test_kl_shampoo_equals_its_equations(config: Any, statistics: str, grafted: bool) -> None:
    graft = {"grafting_config": AdaGradGrafting(1e-6)} if grafted else {}
    slow_graft = {"graft": ("adagrad", 1e-6, 0.0)} if grafted else {}
    _compare(
        {"preconditioner_config": config(statistics=statistics), "inverse_exponent_override": 0.5} | graft,
        {"statistics": statistics, "exponent": 0.5} | slow_graft,
    )
    _compare({"preconditioner_config": config(statistics=statistics)}, {"statistics": statistics})


def test_kl_shampoo_finds_the_covariance_that_shampoo_misses() -> None:
    """Gradients A^(1/2) Z B^(1/2) have covariance A x B. Its estimate from S_a x S_b is right up to scale for KL
    statistics with exponent 1/2; Shampoo's sees `A tr(B)`, which is right too, but only where the other side is."""
    generator = torch.Generator().manual_seed(0)
    a = torch.diag(torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64))
    b = torch.diag(torch.tensor([1.0, 100.0, 1.0, 1.0, 25.0], dtype=torch.float64))
    weight = Parameter(torch.zeros(3, 5, dtype=torch.float64))
    optimizer = DistributedShampoo(
        [weight],
        betas=(0.0, 0.995),
        epsilon=1e-10,
        precondition_frequency=1,
        start_preconditioning_step=10,
        inverse_exponent_override=0.5,
        preconditioner_config=RootInverse(statistics="kl_mean"),
    )
    for _ in range(1500):
        weight.grad = a.sqrt() @ torch.randn(3, 5, generator=generator, dtype=torch.float64) @ b.sqrt()
        optimizer.step()
    state = optimizer.state[weight]
    estimate = torch.kron(state["block_0/factor_0"], state["block_0/factor_1"])
    truth = torch.kron(a, b)
    # About 200 gradients count, 3 or 5 samples each: a relative error of 1 / sqrt(600) per entry of a factor, twice.
    assert float((estimate / estimate.trace() - truth / truth.trace()).norm() / (truth / truth.trace()).norm()) < 0.2
    assert 0.7 < float(estimate.trace() / truth.trace()) < 1.4  # the paper's mean also finds the scale


@pytest.mark.parametrize("exponent", [None, 0.5, {2: {0: 0.3}}])
def test_the_eigendecomposed_form_takes_the_steps_of_the_roots(exponent: Any) -> None:
    ours = {
        "preconditioner_config": Eigendecomposed(),
        "inverse_exponent_override": exponent,
        "max_preconditioner_dim": 4,
    }
    _compare(ours, {"exponent": exponent, "max_preconditioner_dim": 4})


def test_eigendecomposed_by_qr_is_near_and_converges_to_it() -> None:
    """With many QR iterations per refresh the bases are those of eigh."""
    ours = {"preconditioner_config": Eigendecomposed("qr", max_iterations=300), "epsilon": 1e-2}
    _compare(
        ours, {"epsilon": 1e-2}, shapes=[(3, 4), (2,)], rtol=1e-4
    )  # the iterations converge with the ratio of two eigenvalues


@pytest.mark.parametrize("config", [RootInverse, Eigendecomposed])
def test_trace_scaling_divides_by_the_root_of_the_trace(config: Any) -> None:
    _compare({"preconditioner_config": config(trace_scaling=True)}, {"trace_scaling": True})


@pytest.mark.parametrize("config", [RootInverse, Eigendecomposed])
@pytest.mark.parametrize("override", [{2: {0: 0.5, 1: 0.0}}, {2: {0: 0.0}, 3: {1: 0.0}}, {1: {0: 0.25}, 4: {2: 0.1}}])
def test_one_sided_and_per_order_exponents(config: Any, override: Any) -> None:
    _compare({"preconditioner_config": config(), "inverse_exponent_override": override}, {"exponent": override})


def test_a_dimension_with_exponent_0_has_no_factor() -> None:
    weight = Parameter(torch.ones(4, 3))
    optimizer = DistributedShampoo([weight], inverse_exponent_override={2: {1: 0}}, precondition_frequency=1)
    assert "block_0/factor_0" in optimizer.state[weight]
    assert "block_0/factor_1" not in optimizer.state[weight]
    neither = DistributedShampoo([weight], inverse_exponent_override={2: 0}, grafting_config=None, lr=0.1)
    weight.grad = torch.full_like(weight, 2.0)
    before = weight.detach().clone()
    neither.step()
    torch.testing.assert_close(weight.detach(), before - 0.2)


def test_one_sided_eigenvalue_correction() -> None:
    # It starts once every factor has full rank: before, its eigenvectors are not unique.
    ours = {"betas": (0.9, 0.95), "start_preconditioning_step": 4, "epsilon": 1e-8}
    config = EigenvalueCorrected("eigh", ignored_basis_change_dims={2: [1]})
    slow = ours | {"soap": True, "ignored": (1,)}
    _compare(ours | {"preconditioner_config": config}, slow, shapes=[(3, 4), (5, 3)], num_steps=12)


@pytest.mark.parametrize("config", [RootInverse, Eigendecomposed])
def test_the_pseudo_inverse_leaves_out_what_no_gradient_had(config: Any) -> None:
    settings = {"preconditioner_config": config("pseudo_inverse"), "epsilon": 0.0}
    # One gradient of 3 x 8 leaves five directions of the larger factor empty; the start is at once.
    _compare(
        settings | {"precondition_frequency": 1}, {"pseudo": True, "precondition_frequency": 1}, shapes=[(3, 8), (2, 5)]
    )


@pytest.mark.parametrize("kind", ["l2", "decoupled", "corrected", "independent"])
def test_weight_decay_follows_the_schedule_in_the_form_it_says(kind: str) -> None:
    lrs = [0.001, 0.01, 0.02, 0.02, 0.01, 0.005, 0.001, 0.0]
    ours = {"weight_decay": 0.3, "weight_decay_type": kind, "peak_lr": 0.02, "momentum": 0.5}
    slow = {"weight_decay": 0.3, "decay_type": kind, "peak_lr": 0.02, "momentum": 0.5}
    _compare(ours, slow, lrs=lrs)


@pytest.mark.parametrize(
    ("kind", "shrink"), [("decoupled", 0.05 * 0.3), ("corrected", 0.05**2 / 0.1 * 0.3), ("independent", 0.15)]
)
def test_without_a_gradient_signal_decay_is_all_there_is(kind: str, shrink: float) -> None:
    weight = Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = DistributedShampoo([weight], lr=0.1, weight_decay=0.3, weight_decay_type=kind)
    optimizer.param_groups[0]["lr"] = 0.05  # a schedule at half of its peak, which is the learning rate of the start
    weight.grad = torch.zeros(2, 2, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 1 - shrink), rtol=1e-15, atol=0)


def test_a_basis_that_turns_at_every_step_does_not_break_training() -> None:
    def losses(max_ratio: float | None) -> list[float]:
        torch.manual_seed(0)
        x = torch.randn(512, 13)
        y = x.sum(1, keepdim=True).sin()
        model = torch.nn.Sequential(torch.nn.Linear(13, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1))
        settings: dict[str, Any] = {"lr": 0.003, "betas": (0.9, 0.99), "epsilon": 1e-8, "grafting_config": None}
        config = EigenvalueCorrected("qr", max_ratio=max_ratio)
        optimizer = DistributedShampoo(
            model.parameters(), **settings, precondition_frequency=1, preconditioner_config=config
        )
        reached = []
        for step in range(150):
            rows = torch.arange(64 * step, 64 * step + 64) % 512
            optimizer.zero_grad()
            loss = (model(x[rows]) - y[rows]).square().mean()
            loss.backward()
            optimizer.step()
            reached.append(loss.item())
        return reached

    assert max(losses(None)) > 1e3
    limited = losses(10.0)
    assert max(limited) < 2 * limited[0]
    assert limited[-1] < 0.9 * limited[0]


@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.99), (0.9, 0.99), (0.5, 1.0), (0.9, 0.999)])
def test_the_largest_ratio_is_reached_and_never_exceeded(beta1: float, beta2: float) -> None:
    def ratio(gradients: list[float]) -> float:
        m = v = 0.0
        for g in gradients:
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1.0 if beta2 == 1 else 1 - beta2) * g * g
        return m / v**0.5

    limit = largest_ratio(beta1, beta2)
    worst = [(beta1 / beta2) ** k for k in reversed(range(400))]  # where Cauchy and Schwarz' inequality is equal
    assert ratio(worst) == pytest.approx(limit, rel=1e-9)
    assert ratio([1.0] * 400) <= limit
    assert largest_ratio(0.9, 0.5) == float("inf")
