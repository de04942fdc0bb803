"""The memory that tables need, and the memory of a rank."""

import gc
from pathlib import Path

import torch

from dlrmctl.embeddings.tables import Table

_WEIGHT_BYTES = {"fp32": 4, "fp16": 2}
_STATE_BYTES = 4  # one float32 per row: the sum of row-wise AdaGrad
_CACHE_WAYS = 32  # rows of a set of FBGEMM's cache
_SLOT_BYTES = 16  # the row in a place of the cache, and when it was last used
_INDEX_BYTES = 4  # for each row, the number of its table


def table_bytes(table: Table, rows: int | None = None, *, precision: str = "fp32") -> int:
    """Returns the bytes of `rows` rows (default: all) of a table with their optimizer state."""
    count = table.rows if rows is None else rows
    return weight_bytes(count, table.dim, precision) + state_bytes(count)


def weight_bytes(rows: int, dim: int, precision: str = "fp32") -> int:
    """Returns the bytes of the weights of a table, or of `rows` rows.

    Args:
        precision: one of `TABLE_PRECISIONS`.
    """
    return rows * dim * _WEIGHT_BYTES[precision]


def cache_bytes(rows: int, dim: int, precision: str, share: float) -> int:
    """Returns the bytes on a GPU of FBGEMM's cache for a table in host memory: rows, what each is, and an index.

    Args:
        rows: of the table, on this GPU.
        dim: of the widest table that shares the cache.
        share: of the rows that the cache has room for.
    """
    if rows == 0:
        return 0
    slots = max(-(-int(rows * share) // _CACHE_WAYS), 1) * _CACHE_WAYS
    return weight_bytes(slots, dim, precision) + slots * _SLOT_BYTES + rows * _INDEX_BYTES


def state_bytes(rows: int) -> int:
    """Returns the bytes of the optimizer state of a table, or of `rows` rows."""
    return rows * _STATE_BYTES


def available_bytes(device: torch.device, local_ranks: int = 1) -> int | None:
    """Returns the bytes that one of `local_ranks` ranks can still allocate on `device`; None if unknown."""
    if device.type == "cuda":
        gc.collect()  # models that were dropped may be parts of cycles
        # torch keeps freed memory, and can allocate it again.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    limits = [n for n in (_meminfo_available(), _cgroup_available()) if n is not None]
    return min(limits) // local_ranks if limits else None


def gib(num_bytes: int) -> str:
    """Formats a number of bytes as MiB or GiB."""
    if num_bytes < 2**20:
        return f"{num_bytes:,} bytes"
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_available() -> int | None:
    """Returns the bytes left below a container's limit; the file cache can be reclaimed and counts as free."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = (root / "memory.max").read_text().strip(), int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("file", 0))
