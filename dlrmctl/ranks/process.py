"""Sets the state of this process that libraries share: warnings, logging, and the precision of float32 products.

Importing does not change it. Commands, ranks and the functions of the Python API call `configure`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from dlrmctl.ranks.cores import prepare_threads

# Warnings of torch, TorchRec and FBGEMM, mostly about each other, which users cannot act on.
_IGNORED = (
    (".*broadcast_buffers.*is deprecated", FutureWarning),
    (".*reduce_scatter_tensor.*is deprecated", FutureWarning),
    (".*all_gather_into_tensor.*is deprecated", FutureWarning),
    ("Please use DTensor instead", FutureWarning),
    ("torch.distributed is disabled", UserWarning),
    ("Sparse CSR tensor support is in beta state", UserWarning),
)


def configure() -> None:
    """Sets up threads and warning filters; call it before torch is imported, if possible.

    May be called repeatedly, from any thread.
    """
    prepare_threads()
    for message, category in _IGNORED:
        warnings.filterwarnings("ignore", message=message, category=category)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def set_precision(precision: str) -> None:
    """Sets how float32 products are computed in this process.

    Args:
        precision: "fp32", "medium" or "bf16", as the setting of that name.
    """
    import torch

    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context manager that calls `set_precision`, and restores the state afterwards."""
    import torch

    before = torch.get_float32_matmul_precision()
    set_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Context manager that sets the number of threads, and restores it afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
