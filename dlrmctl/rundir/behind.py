"""Saves the checkpoints of a run, if wanted while training continues.

    live tensors --copied--> tensors in host memory --a thread writes them--> checkpoints/step-N

Training waits for the copy only. One checkpoint is written at a time; the next one waits for it.
"""

import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device

from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.checkpoint import Checkpoints

_NICENESS = 10  # of the writing thread: what training leaves of the cores is enough


class CheckpointWriter:
    """Saves checkpoints and removes those that are no longer needed. Every rank calls it in the same order.

    Args:
        directory: of the checkpoints.
        keep: number of latest checkpoints to keep, besides the best.
        behind: whether to write while training continues, from a copy of the tensors.
    """

    def __init__(self, directory: Path, ranks: Ranks, *, keep: int, behind: bool) -> None:
        self.checkpoints = Checkpoints(directory, ranks)
        self.keep = keep
        self.behind = behind
        self._ranks = ranks
        self._copy = StateCopy()
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_yield_cores)
        self._apart: Checkpoints | None = None  # the same, for the thread
        self._pending: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether this rank knows that a checkpoint could not be written; `finish` raises the error."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save(
        self, step: int, tensors: dict[str, Any], state: dict[str, Any], best_step: int | None, *, at_once: bool
    ) -> None:
        """Saves a checkpoint, once the one before it is written.

        Args:
            tensors, state: see `Checkpoints.save`.
            best_step: see `Checkpoints.keep`.
            at_once: whether to return only when it is written.

        Raises:
            UserError: on every rank, if it or the one before it cannot be written.
        """
        self.finish()
        if at_once or not self.behind:
            self._write(self.checkpoints, step, tensors, state, best_step)
            return
        if self._apart is None:  # collectives of two threads must not mix
            self._apart = Checkpoints(self.checkpoints.directory, self._ranks.apart())
        copy, copied = self._copy.of(tensors)
        self._pending = self._thread.submit(self._write, self._apart, step, copy, state, best_step, copied)

    def _write(
        self,
        checkpoints: Checkpoints,
        step: int,
        tensors: dict[str, Any],
        state: dict[str, Any],
        best_step: int | None,
        copied: torch.cuda.Event | None = None,
    ) -> None:
        if copied is not None:
            copied.synchronize()
        checkpoints.save(step, tensors, state)
        if self._ranks.is_main:
            checkpoints.keep(self.keep, best_step)

    def finish(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            UserError: on every rank, if it cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Context manager that waits for the last checkpoint, also after an exception, which is the one to show.

        Raises:
            UserError: see `finish`.
        """
        try:
            yield
            self.finish()
        except BaseException:
            with suppress(Exception):
                self.finish()
            raise
        finally:
            self._thread.shutdown()


class StateCopy:
    """A copy of tensors in host memory. The next copy reuses its memory, whose pages exist already."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, ...], Tensor] = {}

    def of(self, tensors: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None]:
        """Copies tensors, sharded tensors, and dictionaries of them.

        Returns:
            The copy, and the event after which it is complete, if tensors are on a GPU. What later work on the current
            stream changes is not in it.
        """
        copy = {name: self._copied(value, (name,)) for name, value in tensors.items()}
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            return copy, torch.cuda.current_stream().record_event()
        return copy, None

    def _copied(self, value: Any, place: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {name: self._copied(inner, (*place, str(name))) for name, inner in value.items()}
        if isinstance(value, ShardedTensor):
            return self._sharded(value, place)
        return self._buffered(value, place) if isinstance(value, Tensor) else value

    def _buffered(self, tensor: Tensor, place: tuple[str, ...]) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = self._buffers[place] = _host_memory(tensor)
        return buffer.copy_(tensor.detach(), non_blocking=True)

    def _sharded(self, value: ShardedTensor, place: tuple[str, ...]) -> ShardedTensor:
        shards = [
            Shard(self._buffered(shard.tensor, (*place, str(number))), _in_host_memory(shard.metadata))
            for number, shard in enumerate(value.local_shards())
        ]
        whole = value.metadata()
        properties = replace(whole.tensor_properties, pin_memory=any(shard.tensor.is_pinned() for shard in shards))
        whole = replace(
            whole,
            shards_metadata=[_in_host_memory(shard) for shard in whole.shards_metadata],
            tensor_properties=properties,
        )
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, sharded_tensor_metadata=whole, process_group=value._process_group
        )


def _in_host_memory(shard: ShardMetadata) -> ShardMetadata:
    """Describes the same part of a tensor, in the host memory of its rank."""
    assert shard.placement is not None
    return replace(shard, placement=_remote_device(f"rank:{shard.placement.rank()}/cpu"))


def _host_memory(like: Tensor) -> Tensor:
    """Returns a tensor of the same shape in host memory, page-locked for copies from a GPU."""
    memory = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    if like.is_cuda and memory.numel():
        # Not torch's allocator of page-locked memory, which rounds sizes up to powers of two.
        runtime = torch.cuda.cudart()
        torch.cuda.check_error(int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 1)))
        weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr())
    return memory


def _yield_cores() -> None:
    """Lowers the priority of this thread; on Linux, that of a thread is its own."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
