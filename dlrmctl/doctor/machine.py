"""Checks this machine: processor, memory, disk, shared memory, network, GPUs."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from dlrmctl.console.text import bytes_text
from dlrmctl.data.files import SCRATCH_HINT
from dlrmctl.doctor.finding import Finding
from dlrmctl.doctor.packages import driver_library
from dlrmctl.ranks.cores import NUM_THREADS, WAIT_POLICY, cpu_quota, usable_cores

AREA = "machine"
GPU_SECONDS = 120
_LEAST_DISK, _LEAST_MEMORY, _LEAST_SHARED = 2 << 30, 2 << 30, 1 << 30
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "fma")
# Run in a process of its own: a driver that does not match may end that process.
_GPU_PROGRAM = """
import json, torch
found = {"build": torch.version.cuda, "available": torch.cuda.is_available(), "devices": []}
if found["available"]:
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found["devices"].append([about.name, about.total_memory, f"{about.major}.{about.minor}"])
    torch.zeros(8, device="cuda").sum().item()
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
print(json.dumps(found))
"""


def check_machine() -> list[Finding]:
    """Checks everything but the packages."""
    return [_processor(), _threads(), _memory(), *_disks(), _shared_memory(), _loopback(), _host_name(), _gpu()]


def _processor() -> Finding:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    except OSError:
        return Finding(AREA, "processor", "warning", "/proc/cpuinfo cannot be read")
    has = [name for name in _FEATURES if name in flags]
    found = f"{model}, {', '.join(has) or 'no vector instructions that are used here'}"
    if "avx2" not in flags:
        return Finding(
            AREA, "processor", "problem", f"{found}; fbgemm's CPU kernels need AVX2", "use a processor with AVX2"
        )
    return Finding(AREA, "processor", "ok", found)


def _threads() -> Finding:
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    found = f"{cores} of {os.cpu_count()} cores usable"
    if quota is not None and quota < cores:
        found += f", a CPU quota of {quota:.1f} cores"
    waiting = os.environ.get(WAIT_POLICY, "not set")
    found += f"; threads: {os.environ.get(NUM_THREADS, usable_cores())}, {WAIT_POLICY}={waiting}"
    asked = os.environ.get(NUM_THREADS, "")
    if asked.isdigit() and int(asked) > usable_cores():
        return Finding(AREA, "cores", "warning", found, f"unset {NUM_THREADS}")
    if waiting.upper() != "PASSIVE":
        found += ": spinning threads are slow beside other programs"
        return Finding(AREA, "cores", "warning", found, f"unset {WAIT_POLICY}")
    return Finding(AREA, "cores", "ok", found)


def _memory_limit() -> tuple[int, int]:
    """Returns the memory that this process can use, in total and free: the machine's, or its control group's."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        values[key] = int(value.split()[0]) * 1024
    total, free = values["MemTotal"], values["MemAvailable"]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            total, free = min(total, int(limit)), min(free, int(limit) - used)
    except (OSError, ValueError):
        pass
    return total, free


def _memory() -> Finding:
    total, free = _memory_limit()
    found = f"{bytes_text(total)}, {bytes_text(free)} free"
    if free < _LEAST_MEMORY:
        return Finding(
            AREA, "memory", "warning", found, "end other programs, or train with smaller tables: --collisions 16"
        )
    return Finding(AREA, "memory", "ok", found)


def _disks() -> list[Finding]:
    findings = []
    for name, place_of in (("disk here", os.getcwd), ("disk for temporary files", tempfile.gettempdir)):
        try:
            place = place_of()
            free = shutil.disk_usage(place).free
        except OSError as problem:
            remedy = "cd to a directory that exists" if place_of is os.getcwd else SCRATCH_HINT
            findings.append(Finding(AREA, name, "problem", problem.strerror or str(problem), remedy))
            continue
        found = f"{bytes_text(free)} free in {place}"
        if not os.access(place, os.W_OK):
            remedy = "cd to a directory of your own, or export TMPDIR=DIR"
            findings.append(Finding(AREA, name, "problem", f"{place} is not writable", remedy))
        elif free < _LEAST_DISK:
            findings.append(Finding(AREA, name, "warning", found, f"free space in {place}, or export TMPDIR=DIR"))
        elif place_of is tempfile.gettempdir and (asked := os.environ.get("TMPDIR", place)) != place:
            found += f"; TMPDIR = {asked} cannot be used"
            findings.append(Finding(AREA, name, "warning", found, f"mkdir -p {asked}, or unset TMPDIR"))
        else:
            findings.append(Finding(AREA, name, "ok", found))
    return findings


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding(
            AREA, "shared memory", "warning", "there is no /dev/shm; NCCL needs it", "mount -t tmpfs shm /dev/shm"
        )
    usage = shutil.disk_usage(place)
    found = f"{bytes_text(usage.free)} free of {bytes_text(usage.total)} in {place}"
    if usage.free < _LEAST_SHARED:
        return Finding(AREA, "shared memory", "warning", f"{found}; NCCL may need more", "docker run --shm-size=8g ...")
    return Finding(AREA, "shared memory", "ok", found)


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            with socket.create_connection(server.getsockname()[:2], timeout=5):
                port = server.getsockname()[1]
    except OSError as error:
        return Finding(AREA, "ports", "problem", f"ranks cannot connect on 127.0.0.1: {error}", "ip link set lo up")
    return Finding(AREA, "ports", "ok", f"ranks can connect on 127.0.0.1 (port {port} was free)")


def _host_name() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        found = f"{name} has no address: torchrun over machines may not find it (local ranks do not need it)"
        return Finding(
            AREA, "host name", "warning", found, "torchrun --rdzv-endpoint ADDRESS:29500 --local-addr ADDRESS ..."
        )
    return Finding(AREA, "host name", "ok", f"{name} is {address}")


def num_gpus() -> int:
    """Returns the number of GPUs that torch can use."""
    found = _gpus_found() if driver_library() else None
    return len(found["devices"]) if found is not None else 0


@cache
def _gpus_found() -> dict[str, Any] | None:
    """Returns what torch says about GPUs; None if it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _GPU_PROGRAM], capture_output=True, text=True, timeout=GPU_SECONDS
        )
        found: dict[str, Any] | None = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return found if done.returncode == 0 else None


def _gpu() -> Finding:
    if driver_library() is None:
        return Finding(AREA, "gpu", "ok", "no NVIDIA driver: training runs on the processor")
    found = _gpus_found()
    if found is None:
        return Finding(
            AREA,
            "gpu",
            "problem",
            "there is an NVIDIA driver, but torch cannot use it",
            "nvidia-smi, then update the driver",
        )
    if found["build"] is None:
        remedy = "pip install --force-reinstall --index-url https://download.pytorch.org/whl/cu130 torch==2.13.0"
        return Finding(AREA, "gpu", "warning", "there is an NVIDIA driver, but torch is built without CUDA", remedy)
    if not found["available"]:
        text = f"torch is built for CUDA {found['build']} and finds no usable device"
        return Finding(
            AREA, "gpu", "warning", text, "nvidia-smi: is the driver new enough, is CUDA_VISIBLE_DEVICES empty?"
        )
    devices = "; ".join(f"{name}, {bytes_text(size)}, {major}" for name, size, major in found["devices"])
    return Finding(AREA, "gpu", "ok", f"{devices}; CUDA {found['build']}, NCCL {found['nccl']}")
