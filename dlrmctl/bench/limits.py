"""Measures the machine's limits: matrix products, copying, and rows at random places.

`dlrmctl bench step` compares its figures with these, measured in the same run.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dlrmctl.bench.timing import spread_of_rates
from dlrmctl.ranks.process import matmul_precision, num_threads

_COPIED_BYTES = 1 << 27  # more than caches hold
_REPEATS = 20  # repetitions of what takes a fraction of a millisecond
_PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}  # large enough to be limited by arithmetic; takes milliseconds


def _thread_counts() -> list[int]:
    """Returns 1, 2, 4, ... and the number of threads that torch uses."""
    most = torch.get_num_threads()
    return sorted({most, *(1 << power for power in range(most.bit_length()))})


class Limits:
    """The operations that bound a step, as works for `alternate`.

    Args:
        table_RD: the rows of all tables stacked; its values do not change.
        num_ids: rows that a step reads from it.

    Attributes:
        works: to be alternated in this order: products change the number of threads, `copy` restores it.
    """

    def __init__(self, table_RD: Tensor, *, num_ids: int) -> None:
        device, threads = table_RD.device, torch.get_num_threads()
        self._side = _PRODUCT_SIDE[device.type]
        self.works: dict[str, Callable[[], None]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            for count in _thread_counts() if device.type == "cpu" else [threads]:
                self.works[f"{dtype} {count}"] = _product(self._side, dtype, device, count)
        source = torch.ones(_COPIED_BYTES // 4, device=device)
        target = torch.empty_like(source)
        ids = torch.randint(len(table_RD), (num_ids,), device=device)
        rows_ND = table_RD[ids]
        self._copied, self._moved = 2.0 * source.nbytes, float(_REPEATS * rows_ND.nbytes)

        def copy() -> None:
            target.copy_(source)

        def gather() -> None:
            for _ in range(_REPEATS):
                torch.index_select(table_RD, 0, ids, out=rows_ND)

        def scatter() -> None:
            for _ in range(_REPEATS):
                table_RD.index_copy_(0, ids, rows_ND)

        self.works |= {"copy": copy, "gather": gather, "scatter": scatter}

    def rates(self, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
        """Returns rates with their spread.

        GFLOP/s of float32 and bfloat16 products by number of threads, and GB/s of copying (read and written), and of
        reading and of writing rows at uniformly random places.

        Args:
            seconds: seconds of every round of the works.
        """

        def rate(name: str, amount: float) -> dict[str, float]:
            return spread_of_rates([amount / 1e9 / s for s in seconds[name]])

        def products(dtype: torch.dtype) -> dict[str, dict[str, float]]:
            kind, flop = f"{dtype} ", 2.0 * self._side**3
            return {name.removeprefix(kind): rate(name, flop) for name in self.works if name.startswith(kind)}

        return {
            "sgemm_gflops": products(torch.float32),
            "bf16_gemm_gflops": products(torch.bfloat16),
            "copy_gigabytes_per_second": rate("copy", self._copied),
            "gather_gigabytes_per_second": rate("gather", self._moved),
            "scatter_gigabytes_per_second": rate("scatter", self._moved),
        }


def _product(side: int, dtype: torch.dtype, device: torch.device, threads: int) -> Callable[[], None]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        with matmul_precision("fp32"), num_threads(threads):
            a @ b

    return multiply
