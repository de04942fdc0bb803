"""This process among the ranks: its device and process group."""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dlrmctl.console.text import last_line
from dlrmctl.data.errors import DataError
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import RENDEZVOUS, launch_environment
from dlrmctl.ranks.process import keep_freed_memory
from dlrmctl.ranks.watch import watching
from dlrmctl.ranks.wire import decode, encode

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a checkpoint of large tables may delay the others for long
TIMEOUT_SECONDS = 300.0  # without a sign of life of a rank's process, however long its work takes
_ABORT_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.01
_LAST_PORT = 65535
# Messages of gloo, NCCL and the store when a peer has died.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class Ranks:
    """This process among its ranks.

    Attributes:
        group: all ranks, for tensors on `device`.
        control: the same ranks, for messages and barriers, without a GPU; None: `group`.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    group: dist.ProcessGroup
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints results."""
        return self.rank == 0

    @property
    def messages(self) -> dist.ProcessGroup:
        """The group for messages and barriers."""
        return self.control or self.group

    def broadcast(self, value: Any) -> Any:
        """Returns rank 0's value, of the kinds that `wire.encode` takes, on every rank."""
        if self.world_size == 1:
            return value
        content = torch.frombuffer(bytearray(encode(value) if self.is_main else b"-"), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        dist.broadcast(size, group=self.messages, group_src=0)
        box = content if self.is_main else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(box, group=self.messages, group_src=0)
        return decode(box.numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's value, of the kinds that `wire.encode` takes, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        content = np.frombuffer(encode(value), dtype=np.uint8)
        sizes = [int(size) for (size,) in self.gather_arrays(np.array([len(content)]))]
        padded = np.zeros(max(sizes), dtype=np.uint8)
        padded[: len(content)] = content
        boxes = self.gather_arrays(padded)
        return [decode(box[:size].tobytes()) for box, size in zip(boxes, sizes, strict=True)]

    def gather_arrays(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns every rank's array, in rank order, on every rank; all have the same shape and type."""
        if self.world_size == 1:
            return [array]
        mine = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8))
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine, group=self.messages)
        return [part.numpy().view(array.dtype) for part in everyone]

    def apart(self) -> "Ranks":
        """Returns the same ranks with new groups, whose messages do not mix with these. Every rank must call it."""
        group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        assert group is not None
        return replace(self, control=group)

    def alone(self) -> "Ranks":
        """Returns this rank as the only one, on the CPU. Every rank must call it."""
        if self.world_size == 1:
            return replace(self, device=torch.device("cpu"))
        group, _ = dist.new_subgroups(1, backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return Ranks(0, 1, 1, torch.device("cpu"), group)

    def broadcast_tensor(self, tensor: torch.Tensor) -> None:
        """Copies rank 0's tensor, in main memory, into that of every rank."""
        if self.world_size > 1:
            dist.broadcast(tensor, group=self.messages, group_src=0)

    def join_arrays(self, array: np.ndarray, lengths: Sequence[int]) -> np.ndarray | None:
        """Returns the arrays of all ranks, one after the other, on rank 0, and None on the others.

        Args:
            array: one-dimensional, of the same type on every rank.
            lengths: of the arrays, by rank.
        """
        if self.world_size == 1:
            return array
        if not self.is_main:
            if len(array):
                dist.send(_bytes_of(np.ascontiguousarray(array)), group=self.messages, group_dst=0)
            return None
        whole = np.empty(sum(lengths), dtype=array.dtype)
        whole[: lengths[0]], at = array, lengths[0]
        for rank in range(1, self.world_size):
            if lengths[rank]:
                dist.recv(_bytes_of(whole[at : at + lengths[rank]]), group=self.messages, group_src=rank)
            at += lengths[rank]
        return whole

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on rank 0, and returns its result on every rank. Errors for users are raised on every rank."""
        return _raised(self.broadcast(_attempted(work) if self.is_main else None))

    def from_all(self, work: Callable[[], Any]) -> list[Any]:
        """Runs `work` on every rank, and returns all results on every rank. The first error is raised on every rank."""
        return [_raised(found) for found in self.gather(_attempted(work))]

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world_size > 1:
            dist.barrier(group=self.messages)


def _attempted(work: Callable[[], Any]) -> Any:
    """Returns the result of `work`, or its error for users."""
    try:
        return work()
    except (UserError, DataError) as error:
        return error


def _raised(found: Any) -> Any:
    if isinstance(found, UserError | DataError):
        raise found
    return found


def _bytes_of(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.uint8))


@contextmanager
def process_group(device: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """Joins the ranks that the environment describes, or is the only rank; leaves on exit.

    Args:
        device: "auto", "cpu" or "cuda".
        timeout_seconds: time without a sign of life after which a rank is lost, and the others end.

    Raises:
        UserError: if the device does not exist, ranks share a GPU, or the rendezvous fails.
    """
    environment = launch_environment()
    chosen = choose_device(device, environment.local_rank)
    if chosen.type == "cpu":
        keep_freed_memory()
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    hook = sys.excepthook  # torch replaces it by one that writes the rank before each line of a traceback
    try:
        if environment.world_size == 1 and not environment.from_launcher:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
            store = None
        else:
            place = os.environ.get(RENDEZVOUS, "env://")
            if place == "env://":
                _check_address()
            store, _, _ = next(
                dist.rendezvous(place, environment.rank, environment.world_size, timeout=COLLECTIVE_TIMEOUT)
            )
            store = _of_this_attempt(store, environment.rank, environment.world_size)
            if chosen.type == "cuda":
                refuse_shared_gpus(_gpus_of_all(store, environment.rank, environment.world_size, chosen))
            # Without `device_id`, NCCL connects in the first collective. With it, it would connect here, where nothing
            # ends ranks that wait for one that is lost. The GPU is known: `choose_device` has made it the current one.
            dist.init_process_group(
                backend,
                store=store,
                rank=environment.rank,
                world_size=environment.world_size,
                timeout=COLLECTIVE_TIMEOUT,
            )
    except (dist.DistNetworkError, dist.DistStoreError, ValueError) as problem:
        raise _rendezvous_error(problem) from None
    succeeded = False
    try:
        group = dist.group.WORLD
        assert group is not None
        control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if backend == "nccl" else None
        ranks = Ranks(environment.rank, environment.world_size, environment.local_world_size, chosen, group, control)
        watch: AbstractContextManager[None] = nullcontext()
        if store is not None and ranks.world_size > 1:
            watch = watching(store, ranks.rank, ranks.world_size, timeout_seconds)
        with watch:
            yield ranks
        succeeded = True
    except torch.OutOfMemoryError as problem:
        raise UserError(
            f"rank {environment.rank}: the memory of the GPU is full: {str(problem).strip().split('. GPU')[0]}",
            "a smaller --batch-size, smaller tables or more ranks; `dlrmctl plan` with the same flags shows each part",
        ) from None
    except dist.DistBackendError as problem:
        raise UserError(f"rank {environment.rank}: {chosen.type} communication failed: {last_line(problem)}") from None
    except RuntimeError as problem:
        if any(words in str(problem) for words in _LOST_PEER):
            raise UserError(
                f"rank {environment.rank} lost contact with another rank",
                "see the message of that rank; --resume continues the run",
            ) from None
        raise
    finally:
        if environment.world_size == 1:
            sys.excepthook = hook
        if succeeded or backend == "gloo":
            with suppress(Exception):  # a peer may have ended already, and its error is the one to show
                dist.destroy_process_group()
        else:
            _abort()


def _of_this_attempt(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Returns a part of the store that is the same on all ranks, and that no earlier attempt has written to.

    torchrun keeps its store when it restarts ranks, and old addresses must not be read. Its count of restarts does not
    name the attempt: where an agent loses its rank, it counts, and where it restarts because another does, it does not.
    So rank 0 numbers the attempt, and tells it to each rank, whose process has a name that is new.
    """
    if rank == 0:
        number = str(store.add("attempts", 1))
        missing = list(range(1, world_size))
        while missing:
            missing = [other for other in missing if not _has_agreed(store, other, number)]
            time.sleep(_ASK_AGAIN_SECONDS if missing else 0)
    else:
        name = secrets.token_hex(8)
        store.set(f"name-{rank}", name)
        number = store.get(f"attempt-of-{name}").decode()
        store.set(f"agreed-{name}", number)
    return dist.PrefixStore(f"attempt-{number}", store)


def _has_agreed(store: dist.Store, rank: int, number: str) -> bool:
    """Tells the number to the process that last took this rank, and returns whether it has read it."""
    if not store.check([f"name-{rank}"]):
        return False
    name = store.get(f"name-{rank}").decode()
    store.set(f"attempt-of-{name}", number)
    return store.check([f"agreed-{name}"]) and store.get(f"agreed-{name}").decode() == number


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Returns the device of a rank, and makes a GPU the current one.

    Args:
        wanted: "auto", "cpu" or "cuda".

    Raises:
        UserError: if torch sees no GPU, and one is wanted.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.device = cuda, but torch sees no CUDA device", "--device cpu, or check the driver")
    # Launchers may show each rank its own GPU alone; then it is number 0 everywhere.
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def refuse_shared_gpus(gpus: Sequence[str]) -> None:
    """Checks that every rank has a GPU of its own, which NCCL needs.

    Args:
        gpus: by rank, a name of its GPU that is unique over all machines.

    Raises:
        UserError: naming two ranks that share one.
    """
    for rank, gpu in enumerate(gpus):
        if (first := gpus.index(gpu)) != rank:
            raise UserError(
                f"ranks {first} and {rank} have the same GPU, {gpu}; every rank needs its own",
                "start at most as many ranks on a machine as it has GPUs, or --device cpu",
            )


def _gpus_of_all(store: dist.Store, rank: int, world_size: int, device: torch.device) -> list[str]:
    """Returns the GPU of every rank. Through the store, because no group can be made while two ranks share one."""
    about = torch.cuda.get_device_properties(device)
    store.set(f"gpu-{rank}", f"{about.name} {about.uuid} of {socket.gethostname()}")
    return [store.get(f"gpu-{each}").decode() for each in range(world_size)]


def _abort() -> None:
    """Ends NCCL's communication after an error. Leaving as usual would wait for ranks that are in a collective."""

    def abort() -> None:
        with suppress(Exception):
            dist.distributed_c10d._abort_process_group()

    thread = threading.Thread(target=abort, daemon=True)
    thread.start()
    thread.join(_ABORT_SECONDS)


def _check_address() -> None:
    """Checks that MASTER_ADDR has an address. torch would ask for it again and again, for minutes.

    Raises:
        UserError: if it has none, MASTER_PORT is no port, or one of them is not set.
    """
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(variable):
            raise UserError(
                f"RANK and WORLD_SIZE are set, but {variable} is not",
                "start the ranks with torchrun or --nproc; or unset RANK to train in this process",
            )
    name, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdecimal() and int(port) <= _LAST_PORT):
        raise UserError(
            f"MASTER_PORT = {port!r} in the environment is not a port, a number up to {_LAST_PORT}",
            "the same on every machine, such as 29500",
        )
    try:
        socket.getaddrinfo(name, None)
    except OSError as problem:
        raise UserError(
            f"MASTER_ADDR = {name} has no address on this machine: {problem.strerror}",
            "set it to a name or an address of the machine of rank 0",
        ) from None


def _rendezvous_error(problem: Exception) -> UserError:
    address, port = os.environ.get("MASTER_ADDR", "?"), os.environ.get("MASTER_PORT", "?")
    if "EADDRINUSE" in str(problem) or "address already in use" in str(problem).lower():
        return UserError(f"MASTER_PORT = {port} is in use on this machine", "choose another --master-port, or 0")
    return UserError(
        f"no rendezvous at {address}:{port}: {str(problem).splitlines()[0]}",
        "check MASTER_ADDR, MASTER_PORT and that every node was started",
    )
