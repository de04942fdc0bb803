"""Shampoo for any torch model: the step as a sequence, its state, and a report of failed roots and costs.

    gradients (checked) -> blocks -> this rank's directions (shard.py) -> one all-gather (division.py) -> weights

Every rank must hold the same gradients, as after DistributedDataParallel. Blocks belong to ranks; a rank keeps state
and computes directions only for its own. Source: Gupta et al., arXiv:1802.09568; Anil et al., arXiv:2002.09018;
Shi et al., arXiv:2309.06497.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from dlrmctl.optim.closure import loss_of
from dlrmctl.optim.shampoo import state
from dlrmctl.optim.shampoo.configs import AdaGradGrafting, Grafting, Preconditioner, RootInverse
from dlrmctl.optim.shampoo.costs import ParameterCost, PartTimes, StepCost, Timed, untimed
from dlrmctl.optim.shampoo.division import Division
from dlrmctl.optim.shampoo.factors import FAILED, ExponentOverride
from dlrmctl.optim.shampoo.gradients import gradients, parameter_name
from dlrmctl.optim.shampoo.settings import checked_group

_NUM_NAMED = 3  # blocks that a report of failures lists


class DistributedShampoo(Optimizer):
    """Shampoo with grafting, in one process or, with a process group, in several.

    Args:
        params: parameters, named parameters, or groups of them; every setting below can differ per group.
        lr: learning rate.
        betas: decay of the filtered gradient (0: none) and of the factor matrices (1: a plain sum, as in AdaGrad).
        beta3: weight of the old average in the direction, similar to Nesterov's momentum; -1 means beta1.
        epsilon: added to the diagonal of every factor matrix. None: `relative_epsilon` times its mean eigenvalue, which
            is safer in float32, at any scale of the gradients.
        momentum, dampening, use_nesterov: heavy-ball momentum on the finished direction.
        weight_decay, use_decoupled_weight_decay: added to the direction (AdamW), or to the gradient (L2).
        weight_decay_type: replaces the flag: "l2", "decoupled", "corrected" (times lr / peak_lr) or "independent"
            (divided by peak_lr); see `settings.decay_of_weights`.
        peak_lr: the highest learning rate of the schedule; None means `lr`.
        max_preconditioner_dim: larger dimensions are split into blocks of this size.
        merge_small_dims: first merge neighbouring dimensions while their product is at most `max_preconditioner_dim`.
        precondition_vectors: whether biases and other parameters of one dimension get a factor matrix; without one they
            take the step of the grafting method, which is much cheaper.
        precondition_frequency: steps between two refreshes of the root inverses.
        refresh_schedule: "constant", or "doubling": roots are refreshed at steps 1, 2, 4, 8, ... until the frequency is
            reached, and factor matrices are updated at every step for the first 8 intervals; sums (beta2 of 1) ever
            more rarely after 64 intervals, down to the frequency of roots. Statistics change fast early in training and
            slowly later; see `plan.refresh_due` and `plan.statistics_span`.
        start_preconditioning_step: before this step, only grafting. -1: the first refresh, at the frequency or at step
            1.
        stagger_refresh: refresh a few blocks every step instead of all at once, so that no step is much longer.
        statistics_frequency: steps between two updates of the factor matrices.
        inverse_exponent_override: exponent p of F ** -p instead of 1 / (2 * order): one for all, or {order: p} or
            {order: {dimension: p}}. A dimension with exponent 0 has no factor matrix: {2: {1: 0}} is one-sided.
        use_bias_correction: whether to correct the bias of the filtered gradient and the factor matrices.
        grafting_config: the method that gives each block its step length; None means Shampoo's own.
        preconditioner_config: RootInverse (Shampoo), Eigendecomposed (the same from kept eigenvectors),
            EigenvalueCorrected (SOAP), or None for the grafting method alone.
        communication_dtype: type in which directions are sent; None means their own.
        use_float32_scalars: round the learning rate and bias corrections to float32, as Meta's implementation does;
            only to repeat its trajectories in float64.
        process_group: the ranks that share the work; None means this process alone.

    State is float32, or float64 for float64 parameters; weights of other types are updated from it.

    Attributes:
        num_failed_roots: refreshes of blocks that failed so far, on this rank; such a block keeps its last good roots,
            or uses grafting alone. `failed_roots_report` lists them.
        check_gradients: whether to refuse gradients that are not finite, which reads their norm; a caller that checks
            them itself sets it to False.
        part_times: None, or the timer of the parts of a step (see `costs.PartTimes`).

    Raises:
        ValueError: if a setting is out of range or a parameter is complex.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 1.0),
        beta3: float = -1.0,
        epsilon: float | None = None,
        relative_epsilon: float = 1e-4,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        use_nesterov: bool = False,
        weight_decay: float = 0.0,
        use_decoupled_weight_decay: bool = True,
        weight_decay_type: str | None = None,
        peak_lr: float | None = None,
        max_preconditioner_dim: int = 128,
        merge_small_dims: bool = False,
        precondition_vectors: bool = True,
        precondition_frequency: int = 50,
        refresh_schedule: str = "constant",
        start_preconditioning_step: float = -1,
        stagger_refresh: bool = False,
        statistics_frequency: int = 1,
        inverse_exponent_override: ExponentOverride | None = None,
        use_bias_correction: bool = True,
        grafting_config: Grafting | None = AdaGradGrafting(),  # noqa: B008 (frozen)
        preconditioner_config: Preconditioner | None = RootInverse(),  # noqa: B008 (frozen)
        communication_dtype: torch.dtype | None = None,
        use_float32_scalars: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "epsilon": epsilon,
            "relative_epsilon": relative_epsilon,
            "momentum": momentum,
            "dampening": dampening,
            "use_nesterov": use_nesterov,
            "weight_decay": weight_decay,
            "use_decoupled_weight_decay": use_decoupled_weight_decay,
            "weight_decay_type": weight_decay_type,
            "peak_lr": peak_lr,
            "max_preconditioner_dim": max_preconditioner_dim,
            "merge_small_dims": merge_small_dims,
            "precondition_vectors": precondition_vectors,
            "precondition_frequency": precondition_frequency,
            "refresh_schedule": refresh_schedule,
            "start_preconditioning_step": start_preconditioning_step,
            "stagger_refresh": stagger_refresh,
            "statistics_frequency": statistics_frequency,
            "inverse_exponent_override": inverse_exponent_override,
            "use_bias_correction": use_bias_correction,
            "grafting_config": grafting_config,
            "preconditioner_config": preconditioner_config,
            "use_float32_scalars": use_float32_scalars,
        }
        self._process_group = process_group
        self.check_gradients = True
        self._division = Division(process_group, communication_dtype)
        self.part_times: PartTimes | None = None
        super().__init__(params, defaults)

    @property
    def num_failed_roots(self) -> int:
        return num_failed_roots(self._division)

    def failed_roots_report(self) -> str:
        """One line, "" if nothing failed: "2 root inverses failed: mlp.0.weight block 3 (kept the last good one)"."""
        return failed_roots(self._division, self.param_groups)

    def costs(self) -> list[ParameterCost]:
        """Returns the multiplications per step and bytes of state of every parameter, in order."""
        return parameter_costs(self._division, self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; returns the closure's loss.

        A parameter without a gradient does not change. With a process group every rank must call it.

        Raises:
            NonFiniteGradientError: before anything is changed, if a gradient holds NaN or infinity and is checked.
        """
        loss = loss_of(closure)
        timed: Timed = self.part_times or untimed
        with timed("gradients"):
            grads = gradients(self.param_groups, check=self.check_gradients)
        for group in self.param_groups:
            group["step"] += 1  # even without gradients, so that ranks agree
        self._division.compute(self.param_groups, grads, timed)
        with timed("communication"):
            self._division.exchange()
        with timed("weights"):
            self._division.move(self.param_groups)
        return loss

    def live_tensors(self) -> list[Tensor]:
        """Returns the state of this rank's blocks, in whole buffers with their padding."""
        return [tensor for shard in self._division.shards.values() for tensor in shard.live_tensors()]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            checked_group(group)
            for i, p in enumerate(group["params"]):
                if p.is_complex():
                    name = parameter_name(group, i, len(self.param_groups) - 1)
                    raise ValueError(f"{name} is complex; Shampoo needs real parameters: use torch.view_as_real")
        except ValueError:
            self.param_groups.pop()
            raise
        group["step"] = torch.zeros((), dtype=torch.int64)
        self._division.add_group(group)
        for block, tensors in self._division.block_states(len(self.param_groups) - 1):
            entries = self.state[group["params"][block.position]]
            entries |= {f"block_{block.number}/{name}": tensor for name, tensor in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of this rank's blocks, as in torch.optim; plain data, which `weights_only=True` loads."""
        return state.to_plain(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads state and settings saved by `state_dict` on the same rank of the same number of ranks.

        Raises:
            ValueError: before anything is changed, if groups, blocks or their shapes differ.
        """
        state.load_plain(self, state_dict)

    def blocks_state_dict(self, named: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Returns this rank's state, with names that do not depend on the number of ranks.

        A name is "mlp.0.weight/block_3/factor_0". The tensors are live: reading a checkpoint into them loads it.
        Besides its own blocks every rank has the step counters, "group_0/step".

        Args:
            named: names of all parameters, as from `model.named_parameters()`; others are ignored.

        Raises:
            ValueError: if a parameter of the optimizer has no name.
        """
        return state.blocks_state_dict(self, named)

    def load_blocks_state_dict(self, named: Mapping[str, Parameter], state_dict: Mapping[str, Tensor]) -> None:
        """Loads this rank's blocks from `state_dict`, which may hold those of all ranks.

        Raises:
            ValueError: before anything is changed, if a block is missing or has another shape.
        """
        state.load_blocks_state_dict(self, named, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "DistributedShampoo":
        memo[id(self._process_group)] = self._process_group  # a connection is shared, not copied
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return clone


def num_failed_roots(division: Division) -> int:
    return sum(shard.failures.total() for shard in division.shards.values())


def failed_roots(division: Division, groups: Sequence[dict[str, Any]]) -> str:
    """Reports the blocks of this rank that failed, in one line, the worst first."""
    items: list[tuple[int, int, str]] = []
    for (g, _), shard in division.shards.items():
        for index, times in shard.failures.items():
            block = shard.blocks[index]
            alone = int(shard.block_state(index)["root_status"]) == FAILED
            # Without grafting and roots the direction is the gradient.
            instead = "kept the last good one" if not alone else "takes the grafted step"
            if alone and groups[g]["grafting_config"] is None:
                instead = "takes the gradient itself"
            often = f"{times} times, " if times > 1 else ""
            name = parameter_name(groups[g], block.position, g)
            items.append((-times, len(items), f"{name} block {block.number} ({often}{instead})"))
    if not items:
        return ""
    total = num_failed_roots(division)
    named = ", ".join(text for _, _, text in sorted(items)[:_NUM_NAMED])
    more = f" and {len(items) - _NUM_NAMED} more blocks" if len(items) > _NUM_NAMED else ""
    return f"{total} root inverse{'s' if total > 1 else ''} failed: {named}{more}"


def parameter_costs(division: Division, groups: Sequence[dict[str, Any]]) -> list[ParameterCost]:
    """Returns costs over all ranks, and bytes on this one."""
    costs = []
    for g, group in enumerate(groups):
        state_bytes: dict[int, int] = {}
        for block, tensors in division.block_states(g):
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            state_bytes[block.position] = state_bytes.get(block.position, 0) + size
        for i, p in enumerate(group["params"]):
            blocks = [cost for block, cost in division.costs.items() if (block.group, block.position) == (g, i)]
            total = sum(blocks, StepCost())
            name = parameter_name(group, i, g)
            costs.append(ParameterCost(name, tuple(p.shape), len(blocks), total, state_bytes.get(i, 0)))
    return costs
