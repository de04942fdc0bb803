"""A step that is skipped on the device changes nothing, for every optimizer and averaging; others are as usual."""

from collections.abc import Callable, Hashable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from dlrmctl.optim.averaging import PrimalAveraging
from dlrmctl.optim.guarded import GuardedSteps, live_tensors
from dlrmctl.optim.muon import Muon
from dlrmctl.optim.shampoo import AdamGrafting, DistributedShampoo, Eigendecomposed, EigenvalueCorrected
from dlrmctl.optim.signum import Signum

Build = Callable[[list[Parameter]], Optimizer]
SHAMPOO = {"max_preconditioner_dim": 4, "precondition_frequency": 2, "weight_decay": 0.01, "momentum": 0.5}
OPTIMIZERS: dict[str, Build] = {
    "adagrad": lambda p: Adagrad(p, lr=0.1, weight_decay=0.01, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "adamw foreach": lambda p: AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "signum": lambda p: Signum(p, lr=0.1, weight_decay=0.1),
    "muon": lambda p: Muon(p[:1], p[1:], lr=0.1, weight_decay=0.1),
    "shampoo": lambda p: DistributedShampoo(p, lr=0.1, betas=(0.9, 0.9), stagger_refresh=True, **SHAMPOO),
    "shampoo, adam": lambda p: DistributedShampoo(p, lr=0.1, grafting_config=AdamGrafting(), **SHAMPOO),
    "soap": lambda p: DistributedShampoo(p, lr=0.1, preconditioner_config=EigenvalueCorrected(), **SHAMPOO),
    "eigen": lambda p: DistributedShampoo(p, lr=0.1, preconditioner_config=Eigendecomposed(), **SHAMPOO),
}
AVERAGINGS: dict[str, Callable[[Optimizer], Optimizer | PrimalAveraging]] = {
    "none": lambda optimizer: optimizer,
    "gpa": lambda optimizer: PrimalAveraging(optimizer, weight_decay=0.01),
    "schedule-free": lambda optimizer: PrimalAveraging(optimizer, train_interp_coeff=0.9, weight_lr_power=2.0),
}


def _built(optimizer: str, averaging: str) -> tuple[list[Parameter], Optimizer | PrimalAveraging]:
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 5), (6,), (1, 6))]
    built = OPTIMIZERS[optimizer](parameters)
    if isinstance(built, DistributedShampoo):
        built.check_gradients = False
    return parameters, AVERAGINGS[averaging](built)


def _set_gradients(parameters: list[Parameter], step: int, value: float | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
        if value is not None:
            p.grad.flatten()[0] = value


def _copied(optimizer: Optimizer | PrimalAveraging) -> dict[Hashable, Tensor]:
    return {key: tensor.clone() for key, tensor in live_tensors(optimizer).items()}


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_skipped_steps_leave_no_trace(optimizer: str, averaging: str):
    ours, guarded_optimizer = _built(optimizer, averaging)
    theirs, plain = _built(optimizer, averaging)
    guarded, skip, take = GuardedSteps(guarded_optimizer, most_undone=2), torch.tensor(True), torch.tensor(False)
    for step in range(6):
        if step in (0, 3):
            before = _copied(guarded_optimizer)
            for value in (float("nan"), float("inf")):
                _set_gradients(ours, 100, value)
                guarded.step(skip)
            guarded.undo(2)
            for key, tensor in live_tensors(guarded_optimizer).items():
                assert torch.equal(tensor, before.get(key, torch.zeros_like(tensor))), key
        for parameters in (ours, theirs):
            _set_gradients(parameters, step)
        guarded.step(take)
        plain.step()
    assert guarded.taken == 6
    mine, other = (list(live_tensors(o).values()) for o in (guarded_optimizer, plain))
    assert all(torch.equal(*pair) for pair in zip(mine, other, strict=True))
    assert not all(torch.equal(p, Parameter(q)) for p, q in zip(ours, _built(optimizer, averaging)[0], strict=True))
