"""What the machine can do at most: matrix products, copying, and rows at random places.

`dlrmctl bench step` holds its own figures against these, measured in the same run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlrmctl.bench.timing import alternate, spread_of_rates
from dlrmctl.evaluate import set_precision

_COPIED_BYTES = 1 << 27  # more than caches hold
_REPEATS = 20  # of what is over in a fraction of a millisecond
_PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}  # large enough to be limited by arithmetic, over in milliseconds


def thread_counts() -> list[int]:
    """1, 2, 4, ... and the number of threads that torch uses."""
    most = torch.get_num_threads()
    return sorted({most, *(1 << power for power in range(most.bit_length()))})


def measure_limits(table_RD: Tensor, *, num_ids: int, rounds: int) -> dict[str, Any]:
    """Times the operations that bound a step, alternated.

    Args:
        table_RD: the rows of all tables stacked; its values are kept.
        num_ids: rows that a step takes from it.
        rounds: medians are over these.

    Returns:
        Rates with their spread: GFLOP/s of float32 and bfloat16 products by number of threads, GB/s of copying (read
        and written), and of rows read, and of rows written, at uniformly random places.
    """
    device, threads = table_RD.device, torch.get_num_threads()
    side = _PRODUCT_SIDE[device.type]
    works: dict[str, Callable[[], None]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for count in thread_counts() if device.type == "cpu" else [threads]:
            works[f"{dtype} {count}"] = _product(side, dtype, device, count)
    source = torch.ones(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    ids = torch.randint(len(table_RD), (num_ids,), device=device)
    rows_ND = table_RD[ids]

    def copy() -> None:
        torch.set_num_threads(threads)
        target.copy_(source)

    def gather() -> None:
        for _ in range(_REPEATS):
            torch.index_select(table_RD, 0, ids, out=rows_ND)

    def scatter() -> None:
        for _ in range(_REPEATS):
            table_RD.index_copy_(0, ids, rows_ND)

    works |= {"copy": copy, "gather": gather, "scatter": scatter}
    set_precision("fp32")
    seconds = alternate(works, rounds=rounds, device=device)

    def rates(name: str, amount: float) -> dict[str, float]:
        return spread_of_rates([amount / 1e9 / s for s in seconds[name]])

    def products(dtype: torch.dtype) -> dict[str, dict[str, float]]:
        kind = f"{dtype} "
        return {name.removeprefix(kind): rates(name, 2.0 * side**3) for name in seconds if name.startswith(kind)}

    return {
        "sgemm_gflops": products(torch.float32),
        "bf16_gemm_gflops": products(torch.bfloat16),
        "copy_gigabytes_per_second": rates("copy", 2.0 * source.nbytes),
        "gather_gigabytes_per_second": rates("gather", _REPEATS * rows_ND.nbytes),
        "scatter_gigabytes_per_second": rates("scatter", _REPEATS * rows_ND.nbytes),
    }


def _product(side: int, dtype: torch.dtype, device: torch.device, threads: int) -> Callable[[], None]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.set_num_threads(threads)
        a @ b

    return multiply
