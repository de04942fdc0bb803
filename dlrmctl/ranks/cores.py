"""The cores that this process may use, and how the threads of its libraries wait."""

import os
from pathlib import Path

# libgomp's threads spin for milliseconds at the end of each parallel region. Beside other busy processes, or under a
# CPU quota, that takes time from the work; passive threads sleep instead. libgomp reads it when torch is loaded.
WAIT_POLICY = "OMP_WAIT_POLICY"
NUM_THREADS = "OMP_NUM_THREADS"


def usable_cores() -> int:
    """Returns the cores that this process can use: those of its affinity, at most its control groups' CPU quota."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Returns the CPU quota of this process's control groups, in cores; None without a limit.

    Control groups are nested, and the smallest limit up to the root counts. Versions 1 and 2 are read.

    Args:
        root: the directory of /proc and /sys.
    """
    limits = [_limit(directory) for directory in _groups(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def prepare_threads() -> None:
    """Sets environment variables for torch's threads, unless the user did. Call it before torch is imported."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
    cores = usable_cores()
    if cores < len(os.sched_getaffinity(0)):  # OpenMP respects the affinity, but not a quota
        os.environ.setdefault(NUM_THREADS, str(cores))
        os.environ.setdefault("POLARS_MAX_THREADS", str(cores))


def _groups(root: Path) -> list[Path]:
    """Yields the control groups of this process that may limit the CPU, up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mounts = root / "sys/fs/cgroup"
    directories: list[Path] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            bases = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        # In a container the path is often the host's; then only the mount itself exists.
        inner = Path(path.lstrip("/"))
        directories += [base / part for base in bases for part in (inner, *inner.parents)]
    return directories


def _limit(directory: Path) -> float | None:
    """Returns the quota of one control group in cores; None if it has none, or this is not one."""
    try:
        limit, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (limit.isdigit() and period.isdigit() and int(period)):
        return None  # "max" in version 2, -1 in version 1
    return int(limit) / int(period)
