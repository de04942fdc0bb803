"""A pool of real gloo ranks that all tests share: starting a rank costs seconds, using one milliseconds.

def _sum_of_ranks(start):                       # module level: it travels by name
    x = torch.tensor(float(dist.get_rank() + start))
    dist.all_reduce(x)
    return x.item()

assert run_ranks(_sum_of_ranks, 2, 10) == [21.0, 21.0]
"""

import atexit
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.forked import CONTEXT

_pools: dict[int, "_Pool"] = {}


def _rank_main(pipe: Connection, rank: int, world_size: int, rendezvous: str) -> None:
    mine, all_of_them = str(rank), str(world_size)
    os.environ.update(RANK=mine, LOCAL_RANK=mine, WORLD_SIZE=all_of_them, LOCAL_WORLD_SIZE=all_of_them)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    while True:
        try:
            fn, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, fn(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class _Pool:
    def __init__(self, world_size: int) -> None:
        rendezvous = os.path.join(tempfile.mkdtemp(prefix="ranks-"), "store")
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(world_size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_rank_main, args=(theirs, rank, world_size, rendezvous), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 120) -> list[Any]:
    """Calls `fn(*args)` on every rank of a group of `world_size` and returns the results in rank order.

    Raises:
        AssertionError: if a rank raised (with its traceback) or did not answer; the pool is then started anew.
    """
    if world_size not in _pools:
        _pools[world_size] = _Pool(world_size)
    pool = _pools[world_size]
    for pipe in pool.pipes:
        pipe.send((fn, args))
    results, problems = [], []
    for rank, pipe in enumerate(pool.pipes):
        try:
            # Once a rank has failed the others may wait for it in a collective for ever.
            if not pipe.poll(5 if problems else timeout_seconds):
                problems.append(f"rank {rank}: no answer")
                continue
            ok, value = pipe.recv()
        except (EOFError, ConnectionResetError):
            ok, value = False, "the process died"
        if ok:
            results.append(value)
        else:
            problems.append(f"rank {rank}: {value}")
    if problems:
        _pools.pop(world_size).close()
        raise AssertionError("\n".join(problems))
    return results


@atexit.register
def _close_all() -> None:
    for pool in _pools.values():
        pool.close()
