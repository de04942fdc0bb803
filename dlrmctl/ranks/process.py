"""The state of this process that libraries share: warnings, logging, and how float32 products are computed.

Importing a module changes none of it. A command, a rank, and each function of the Python API call `configure`.
"""

import logging
import warnings

# What torch, TorchRec and FBGEMM say about each other; nobody who runs a model can act on it.
_IGNORED = (
    (".*broadcast_buffers.*is deprecated", FutureWarning),
    (".*reduce_scatter_tensor.*is deprecated", FutureWarning),
    (".*all_gather_into_tensor.*is deprecated", FutureWarning),
    ("Please use DTensor instead", FutureWarning),
    ("torch.distributed is disabled", UserWarning),
)


def configure() -> None:
    """Silences warnings of the libraries about each other. May be called repeatedly, from any thread."""
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
