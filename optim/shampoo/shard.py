"""The blocks of one parameter group that one rank owns: their state, and the direction they take each step.

All blocks are consecutive in flat buffers [N], diagonal blocks first, then grouped by shape. An elementwise operation
is one call on a flat buffer; a matrix product is one batched call per shape.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.blocks import ParameterBlock
from dlrmctl.optim.shampoo.configs import AdaGradGrafting, AdamGrafting
from dlrmctl.optim.shampoo.costs import Timed, untimed
from dlrmctl.optim.shampoo.factors import NEVER_REFRESHED, RootSettings
from dlrmctl.optim.shampoo.grafting import (
    BlockGroup,
    filter_gradient,
    graft,
    graft_on_device,
    grafted_step,
    has_second_moment,
    stop_lost,
    update_second_moment,
)
from dlrmctl.optim.shampoo.memory import Layout
from dlrmctl.optim.shampoo.plan import refresh_due, statistics_seen, statistics_span
from dlrmctl.optim.shampoo.preconditioner import make_stack
from dlrmctl.optim.shampoo.settings import bias_correction, decay_of_weights, largest_ratio

Settings = dict[str, Any]  # a parameter group of the optimizer
_CHUNK = 1 << 20  # elements; the buffers of an elementwise pass over them fit into a cache that cores share


class Shard:
    """State and step of some blocks of one group.

    Args:
        blocks: in `blocks.flat_order`.
        turns: per block, its step in the refresh cycle, or None for all at once.
        settings: the parameter group; state is allocated for what it enables at construction.
        out_N: the output, one flat buffer of the directions of all blocks.
    """

    def __init__(
        self,
        blocks: list[ParameterBlock],
        turns: list[int | None],
        settings: Settings,
        *,
        dtype: torch.dtype,
        out_N: Tensor,
    ) -> None:
        self.blocks = blocks
        self.places = [(block.position, block.number) for block in blocks]
        self.turns = turns
        self.failures: Counter[int] = Counter()  # failed refreshes so far, by index of the block
        device, num_elements = out_N.device, out_N.numel()
        self._layout = Layout(blocks)
        self._num_diagonal = Layout([block for block in blocks if block.diagonal]).numel

        def zeros(n: int) -> Tensor:
            return torch.zeros(n, dtype=dtype, device=device)

        grafting = settings["grafting_config"]
        self._num_grafted = num_elements if grafting is not None else self._num_diagonal
        second_moment = has_second_moment(self._diagonal_method(settings))
        self._second_moment = zeros(self._num_grafted if second_moment else 0)
        self._filtered_grad = zeros(num_elements if settings["betas"][0] > 0 else 0)
        self._momentum = zeros(num_elements if settings["momentum"] > 0 else 0)
        # Scratch, kept because new pages cost more time than the arithmetic on them.
        self._grad, self._grafted = zeros(num_elements), zeros(self._num_grafted)
        self._grad_views = self._layout.views(self._grad)
        self._make_parts(settings)
        length = _CHUNK if device.type == "cpu" else max(num_elements, 1)
        bounds = sorted({*range(0, num_elements, length), self._num_grafted, num_elements})
        self._chunks = [
            tuple(flat[start:stop] for flat in (self._grad, self._filtered_grad, self._second_moment, self._grafted))
            for start, stop in pairwise(bounds)
        ]
        self.set_out(out_N)

    def _make_parts(self, settings: Settings) -> None:
        rows_of = [i for i, block in enumerate(self.blocks) if not block.diagonal]
        first = len(self.blocks) - len(rows_of)
        self._root_status = torch.full((len(rows_of),), NEVER_REFRESHED, dtype=torch.int64)
        self._parts: list[BlockGroup] = []
        for shape, members in groupby(rows_of, key=lambda i: self.blocks[i].shape):
            rows = list(members)
            stack = make_stack(
                shape,
                self.blocks[rows[0]].dims,
                settings["preconditioner_config"],
                root_status=self._root_status[rows[0] - first : rows[-1] + 1 - first],
                dtype=self._grad.dtype,
                device=self._grad.device,
            )
            elements = self._layout.elements(rows[0], rows[-1])
            self._parts.append(BlockGroup(slice(rows[0], rows[-1] + 1), elements, stack, self._grad, self._grafted))

    def set_out(self, out_N: Tensor) -> None:
        self.out_N = out_N
        self._out_views = self._layout.views(out_N)
        for part in self._parts:
            part.set_out(out_N)

    def state_bytes(self) -> int:
        """The bytes of the state of all blocks."""
        kinds = Counter((block.diagonal, block.shape) for block in self.blocks)
        first = {(block.diagonal, block.shape): i for i, block in enumerate(self.blocks)}
        return sum(
            count * sum(tensor.nbytes for tensor in self.block_state(first[kind]).values())
            for kind, count in kinds.items()
        )

    def live_tensors(self) -> list[Tensor]:
        """Returns the state of all blocks in whole buffers."""
        flat = [tensor for tensor in (self._second_moment, self._filtered_grad, self._momentum) if tensor.numel()]
        return [*flat, self._root_status, *(tensor for part in self._parts for tensor in part.stack.live_tensors())]

    def allocated_bytes(self) -> int:
        """The bytes of all memory allocated here: state, scratch and padding, without the directions."""
        held = [self._second_moment, self._filtered_grad, self._momentum, self._grad, self._grafted, self._root_status]
        held += [tensor for part in self._parts for tensor in part.stack.allocated()]
        return sum(tensor.untyped_storage().nbytes() for tensor in held)

    def block_state(self, index: int) -> dict[str, Tensor]:
        """Returns live views of the state of one block, by name."""
        block, start = self.blocks[index], self._layout.starts[index]
        state: dict[str, Tensor] = {}
        for name, flat in (
            ("second_moment", self._second_moment),
            ("filtered_grad", self._filtered_grad),
            ("momentum", self._momentum),
        ):
            if start < flat.numel():
                state[name] = flat[start : start + block.numel].view(block.shape)
        for part in self._parts:
            if part.rows.start <= index < part.rows.stop:
                state |= part.stack.block_state(index - part.rows.start)
        return state

    @torch.no_grad()
    def compute(
        self,
        step: int,
        settings: Settings,
        grads: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        timed: Timed = untimed,
    ) -> None:
        """Writes the direction of every block to `out_N`; a block without a gradient keeps its state and gets zero.

        Args:
            step: t, counted from 1.
            grads, weights: per block, in the order of `blocks`; read only.
            timed: context manager that measures a part.
        """
        absent = [i for i, grad in enumerate(grads) if grad is None]
        if len(absent) == len(grads):
            self.out_N.zero_()
            return
        untouched = [(tensor, tensor.clone()) for i in absent for tensor in self.block_state(i).values()]

        to_gradient, to_direction = decay_of_weights(settings)
        with timed("gradients"):
            self._collect(grads, weights, to_gradient)
        with timed("statistics"):
            self._accumulate(step, settings)
        with timed("roots"):
            self._refresh(step, settings)
        with timed("elementwise"):
            self._filter_and_graft(step, settings)
        with timed("application"):
            self._direct(step, settings)
        if to_direction:
            torch._foreach_add_(self._out_views, list(weights), alpha=to_direction)
        self._apply_momentum(settings)

        for tensor, before in untouched:
            tensor.copy_(before)
        for i in absent:
            self._out_views[i].zero_()

    def _collect(self, grads: Sequence[Tensor | None], weights: Sequence[Tensor], decay: float) -> None:
        """Writes G, a copy of the gradients in the flat order, with L2 decay."""
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if len(present) < len(grads):
            self._grad.zero_()
        torch._foreach_copy_([self._grad_views[i] for i in present], [g for g in grads if g is not None])
        if decay:
            torch._foreach_add_(self._grad_views, list(weights), alpha=decay)

    def _accumulate(self, step: int, settings: Settings) -> None:
        """Adds every k-th product, with weight k, so that the memory of the factors does not depend on k."""
        beta2, span = settings["betas"][1], statistics_span(step, settings)
        if not span:
            return
        decay = beta2**span
        weight = float(span) if beta2 == 1 else 1 - decay
        root_settings = self._root_settings(step, settings)
        for part in self._parts:
            part.stack.accumulate(part.grad_KS, root_settings, decay=decay, weight=weight)

    def _refresh(self, step: int, settings: Settings) -> None:
        frequency, start = settings["precondition_frequency"], settings["start_preconditioning_step"]
        schedule, seen = settings["refresh_schedule"], statistics_seen(step, settings)
        for part in self._parts:
            due = [
                k
                for k, turn in enumerate(self.turns[part.rows])
                if refresh_due(step, frequency=frequency, start=start, turn=turn, schedule=schedule)
            ]
            if due:
                failed = part.stack.refresh(due, self._root_settings(seen, settings))
                self.failures.update(part.rows.start + row for row in failed)
            part.stack.observe(part.grad_KS, beta2=settings["betas"][1])

    @staticmethod
    def _root_settings(step: int, settings: Settings) -> RootSettings:
        (beta1, beta2), correction = settings["betas"], 1.0
        if settings["use_bias_correction"] and beta2 < 1:
            correction = bias_correction(beta2, step, float32=settings["use_float32_scalars"])
        epsilon, override = settings["epsilon"], settings["inverse_exponent_override"]
        ratio = largest_ratio(beta1, beta2)
        return RootSettings(correction, epsilon, settings["relative_epsilon"], override, ratio)

    def _filter_and_graft(self, step: int, settings: Settings) -> None:
        """Updates V, replaces G by H, and computes the grafted step of H; chunk by chunk, to stay in the cache."""
        method, float32 = self._diagonal_method(settings), settings["use_float32_scalars"]
        beta1 = settings["betas"][0]
        beta3 = beta1 if settings["beta3"] == -1 else settings["beta3"]
        filter_correction = grafting_correction = 1.0
        if settings["use_bias_correction"]:
            filter_correction = bias_correction(beta1, step - 1, float32=float32, factor=beta3)
        if isinstance(method, AdamGrafting):
            grafting_correction = bias_correction(method.beta2, step, float32=float32)
        for grad, average, second_moment, grafted in self._chunks:
            if second_moment.numel():
                update_second_moment(second_moment, grad, method)
            if beta1 > 0:
                filter_gradient(grad, average, beta1=beta1, beta3=beta3, correction=filter_correction)
            if grafted.numel():
                grafted_step(grad, second_moment, method, correction=grafting_correction, out=grafted)

    def _direct(self, step: int, settings: Settings) -> None:
        """Computes P from H by grafted Shampoo, or by the diagonal method before the start and for diagonal blocks."""
        grafting, started = settings["grafting_config"], step >= settings["start_preconditioning_step"]
        copied = self._num_diagonal if started or grafting is None else self._num_grafted
        self.out_N[:copied].copy_(self._grafted[:copied])
        if grafting is not None and not started:
            return
        root_settings = self._root_settings(step, settings)
        for part in self._parts:
            part.stack.direction(part.grad_KS, root_settings, out=part.out_KS)
        if not self._parts:
            return
        if grafting is not None and self._grad.device.type == "cpu":
            graft(self._parts, self._root_status)
        elif grafting is not None:
            graft_on_device(self._parts, self._root_status)
        else:
            stop_lost(self._parts)

    def _apply_momentum(self, settings: Settings) -> None:
        momentum, kept = settings["momentum"], 1 - settings["dampening"]
        if momentum == 0:
            return
        self._momentum.mul_(momentum).add_(self.out_N, alpha=kept)
        if settings["use_nesterov"]:
            self.out_N.mul_(kept).add_(self._momentum, alpha=momentum)
        else:
            self.out_N.copy_(self._momentum)

    def _diagonal_method(self, settings: Settings) -> Any:
        """Returns the grafting method; without one, for diagonal blocks, the diagonal of Shampoo's statistics."""
        beta2, epsilon = settings["betas"][1], settings["epsilon"] or 1e-10
        if settings["grafting_config"] is not None:
            return settings["grafting_config"]
        return AdaGradGrafting(epsilon) if beta2 == 1 else AdamGrafting(beta2, epsilon)
