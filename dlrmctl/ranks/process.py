"""Sets the state of this process that libraries share: warnings, logging, and the precision of float32 products.

Importing does not change it. Commands, ranks and the functions of the Python API call `configure`.
"""

import ctypes
import logging
import os
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
    ("Grad strides do not match bucket view strides", UserWarning),  # of a matrix of one column, which has any strides
)

# Of glibc: allocations from this size on are mapped one by one, and the end of the heap is returned from this size on.
_MALLOC_OPTIONS = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
_KEPT_BYTES = 1 << 30
_KEPT_BYTES_BEFORE_GLIBC_2_35 = 32 << 20


def configure() -> None:
    """Sets up threads and warning filters; call it before torch is imported, if possible.

    May be called repeatedly, from any thread.
    """
    prepare_threads()
    for message, category in _IGNORED:
        warnings.filterwarnings("ignore", message=message, category=category)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # It would print the tracebacks of its threads, whose errors are raised too.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())


def keep_freed_memory() -> None:
    """Lets this process keep memory that it frees, up to 1 GiB in one piece, unless the user configured malloc.

    Otherwise activations and gradients of a few megabytes are returned to the system in every step, and the next step
    waits while the system fills as many pages with zeros.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name in os.environ for name in _MALLOC_OPTIONS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for option in _MALLOC_OPTIONS.values():
            if not mallopt(option, _KEPT_BYTES):
                mallopt(option, _KEPT_BYTES_BEFORE_GLIBC_2_35)


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
