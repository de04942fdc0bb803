"""The state of this process that libraries share: warnings, logging, and how float32 products are computed.

Importing a module changes none of it. A command, a rank, and each function of the Python API call `configure`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from dlrmctl.ranks.cores import prepare_threads

# What torch, TorchRec and FBGEMM say about each other; nobody who runs a model can act on it.
_IGNORED = (
    (".*broadcast_buffers.*is deprecated", FutureWarning),
    (".*reduce_scatter_tensor.*is deprecated", FutureWarning),
    (".*all_gather_into_tensor.*is deprecated", FutureWarning),
    ("Please use DTensor instead", FutureWarning),
    ("torch.distributed is disabled", UserWarning),
)


def configure() -> None:
    """Prepares threads, and silences warnings of the libraries about each other; before torch is loaded, if possible.

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
    """`set_precision` while the block lasts; what was set before is set again afterwards."""
    import torch

    before = torch.get_float32_matmul_precision()
    set_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Computes with so many threads while the block lasts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
