"""The number of cores that a process may use, from Linux's files, and how OpenMP's threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlrmctl.ranks.cores import cpu_quota, usable_cores

V2 = {"proc/self/cgroup": "0::/jobs/mine\n"}
V1 = {"proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/jobs/mine\n1:name=systemd:/\n"}


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (V2 | {"sys/fs/cgroup/jobs/mine/cpu.max": "150000 100000\n"}, 1.5),
        (V2 | {"sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n"}, None),
        # The group above is the tighter one.
        (
            V2
            | {
                "sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        # A container sees its group as the root, whatever the path says.
        (V2 | {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/jobs/mine/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/jobs/mine/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/jobs/mine/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/jobs/mine/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (V2 | {"sys/fs/cgroup/jobs/mine/cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_quotas_of_both_versions_are_read(tmp_path: Path, files: dict[str, str], cores: float | None):
    assert cpu_quota(_tree(tmp_path, files)) == cores


def test_cores_are_those_of_the_affinity():
    one = "from dlrmctl.ranks.cores import usable_cores; print(usable_cores())"
    code = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {one}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_passively_unless_told_otherwise(given: str | None, found: str):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    # What libgomp itself says that it read, once torch has loaded it.
    code = "from dlrmctl.ranks.process import configure; configure(); import torch; torch.set_num_threads(1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"OMP_WAIT_POLICY = '{found}'" in done.stderr


@pytest.mark.parametrize(("given", "is_kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_unless_malloc_is_configured(given: dict[str, str], is_kept: bool):
    program = (
        "import resource; from dlrmctl.ranks.process import keep_freed_memory; keep_freed_memory(); found = []\n"
        "for _ in range(4):\n"
        "    some = b'1' * (8 << 20); del some\n"
        "    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
        "print(found[3] - found[1])"
    )
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name} | given
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    new_pages = int(run.stdout)  # of two rounds
    assert new_pages < 100 if is_kept else new_pages > 4000
