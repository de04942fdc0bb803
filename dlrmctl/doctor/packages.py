"""Checks which packages are installed, whether they match, and whether each can be imported.

Imports run in another process, so that a crash is a finding.
"""

import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrmctl.data.files import NO_SCRATCH, SCRATCH_HINT
from dlrmctl.doctor.finding import Finding, Status

AREA = "packages"
IMPORT_SECONDS = 240  # for all of them
# torch -> the torchrec and fbgemm releases built for it.
PAIRS = {"2.11": ("1.6", "1.6"), "2.12": ("1.7", "1.7"), "2.13": ("1.8", "1.8"), "2.14": ("1.9", "1.9")}
# What is run for each package: importing its name alone does not load all of its libraries.
_PROBES = {
    "numpy": "import numpy",
    "polars": "import polars; polars.DataFrame({'a': [1]})",
    "safetensors": "import safetensors",
    "torch": "import torch; torch.ones(2) @ torch.ones(2)",
    "fbgemm_gpu": "import torch, fbgemm_gpu; torch.ops.fbgemm.asynchronous_complete_cumsum(torch.arange(2))",
    "torchrec": "import torchrec; torchrec.EmbeddingBagCollection",
    "matplotlib": "import matplotlib.figure",
}
_IMPORTED = "imported"
_BUILT_ON_TORCH = ("fbgemm_gpu", "torchrec")
_FOR_PICTURES = "matplotlib"
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PYTHONS = ((3, 11), (3, 13))
_INSTALL = "pip install --force-reinstall"


def check_packages() -> list[Finding]:
    """Yields findings about Python, versions, matching releases, and imports."""
    return [_python(), *_versions(), _pair(), _fbgemm_build(), *_imports()]


def driver_library() -> str | None:
    """Returns the NVIDIA driver's management library, if the loader finds it."""
    import ctypes

    name = "libnvidia-ml.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return name


def _version_of(name: str) -> str | None:
    """Returns the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    low, high = _PYTHONS
    wanted = f"Python {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    if not low <= sys.version_info[:2] <= high:
        return Finding(
            AREA,
            "python",
            "problem",
            f"{found}; fbgemm and torchrec are built for {wanted}",
            "python3.12 -m venv .venv",
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding(
            AREA,
            "python",
            "problem",
            f"{found}; fbgemm's wheels are for Linux x86_64",
            "use such a machine, or a container on one",
        )
    return Finding(AREA, "python", "ok", found)


def _versions() -> list[Finding]:
    """Compares every requirement of this package with what is installed."""
    try:
        requirements = importlib.metadata.requires("dlrmctl") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding(AREA, "dlrmctl", "problem", "not installed in this environment", "pip install -e .")]
    findings = []
    for line in requirements:
        if "extra ==" in line:
            continue
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        assert name
        installed = _version_of(name[0])
        wanted = line.removeprefix(name[0]).strip()
        if installed is None:
            findings.append(Finding(AREA, name[0], "problem", "not installed", _fix(name[0], wanted)))
        elif not _satisfies(installed, wanted):
            found = f"{installed} is installed, {wanted} is needed"
            findings.append(Finding(AREA, name[0], "problem", found, _fix(name[0], wanted)))
        else:
            findings.append(Finding(AREA, name[0], "ok", installed))
    return findings


def _fix(name: str, wanted: str) -> str:
    if name == "fbgemm-gpu":
        return "pip install -e . (from the clone: it chooses fbgemm's build)"
    return f"pip install '{name}{wanted}'"


def _satisfies(installed: str, wanted: str) -> bool:
    if wanted.startswith("@") or not wanted:
        return True
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    allowed = SpecifierSet(wanted)  # a wheel's requirement names a build, such as ==1.8.0+cpu; bounds ignore builds
    return any(allowed.contains(version, prereleases=True) for version in (installed, installed.split("+")[0]))


def _pair() -> Finding:
    versions = {name: _version_of(name) for name in ("torch", "torchrec", "fbgemm-gpu")}
    if fbgemm := _version_of("fbgemm-gpu-cpu"):
        versions["fbgemm-gpu"] = fbgemm
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if None in versions.values():
        return Finding(AREA, "pairing", "problem", found, "pip install -e .")
    short = {name: ".".join(str(version).split(".")[:2]) for name, version in versions.items()}
    pair = PAIRS.get(short["torch"])
    if pair is None:
        return Finding(AREA, "pairing", "warning", f"{found}: this torch has no known pair", "pip install -e .")
    if pair != (short["torchrec"], short["fbgemm-gpu"]):
        wanted = f"torch {short['torch']} goes with torchrec {pair[0]} and fbgemm {pair[1]}"
        return Finding(AREA, "pairing", "problem", f"{found}; {wanted}", "pip install -e .")
    return Finding(AREA, "pairing", "ok", found)


def _fbgemm_build() -> Finding:
    """Checks the build of fbgemm: the CUDA build needs a driver, and owns the same files as the CPU build."""
    cuda, cpu, driver = _version_of("fbgemm-gpu"), _version_of("fbgemm-gpu-cpu"), driver_library()
    stand_in = bool(cuda) and "cpu" in str(cuda)
    both = cuda and cpu and not stand_in
    if both:
        found = f"fbgemm-gpu {cuda} and fbgemm-gpu-cpu {cpu} are both installed and overwrite each other's files"
        return Finding(
            AREA, "fbgemm build", "problem", found, "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && pip install -e ."
        )
    if cuda and not stand_in and driver is None:
        found = f"the CUDA build {cuda}, which cannot be imported without an NVIDIA driver"
        return Finding(
            AREA,
            "fbgemm build",
            "problem",
            found,
            "pip uninstall -y fbgemm-gpu && DLRMCTL_BACKEND=cpu pip install -e .",
        )
    if cpu and driver is not None:
        found = f"the CPU build {cpu}, but there is an NVIDIA driver"
        remedy = "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && DLRMCTL_BACKEND=cuda pip install -e ."
        return Finding(AREA, "fbgemm build", "warning", found, remedy)
    build = f"CPU build {cpu}" if cpu else f"CUDA build {cuda}" if cuda else "none"
    return Finding(
        AREA, "fbgemm build", "ok" if cuda or cpu else "problem", build, None if cuda or cpu else "pip install -e ."
    )


def _imports() -> list[Finding]:
    findings: dict[str, Finding] = {}
    while left := [module for module in _PROBES if module not in findings]:
        findings |= _import_in_turn(left)
    if findings["torch"].status == "problem":
        for module in _BUILT_ON_TORCH:
            if findings[module].status == "problem":
                findings[module] = replace(findings[module], remedy="fix torch first")
    return list(findings.values())


def _import_in_turn(modules: Sequence[str]) -> dict[str, Finding]:
    """Imports modules in one process, which loads what they share once, up to the first that fails."""
    program = [f"{_PROBES[module]}; print({_IMPORTED!r}, {module}.__file__, flush=True)" for module in modules]
    try:
        # -P: ignore a directory of that name in the current directory.
        command = [sys.executable, "-P", "-c", "\n".join(program)]
        done = subprocess.run(command, capture_output=True, timeout=IMPORT_SECONDS)
        out, err, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        out, err, status = late.stdout or b"", b"", None
    lines = out.decode(errors="replace").splitlines()
    places = [line.removeprefix(_IMPORTED).strip() for line in lines if line.startswith(_IMPORTED)]
    findings = {
        module: Finding(AREA, f"import {module}", "ok", str(Path(place).parent))
        for module, place in zip(modules, places, strict=False)
    }
    if status != 0:
        module = modules[min(len(findings), len(modules) - 1)]
        findings[module] = _failed_import(module, err.decode(errors="replace"), status)
    return findings


def _failed_import(module: str, messages: str, status: int | None) -> Finding:
    """The finding about a module whose import ended with `status`, None if it did not end."""
    name = f"import {module}"
    if status is None:
        return Finding(
            AREA, name, "problem", f"did not end within {IMPORT_SECONDS} s", f"{_INSTALL} {_distribution(module)}"
        )
    if status < 0:
        import signal

        reason = f"ended by {signal.Signals(-status).name} while loading: a file may be cut short"
    else:
        lines = messages.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {status}"
    kind: Status = "warning" if module == _FOR_PICTURES else "problem"
    return Finding(AREA, name, kind, reason, _remedy(module, reason))


def _distribution(module: str) -> str:
    if module == "fbgemm_gpu":
        return "fbgemm-gpu-cpu" if _version_of("fbgemm-gpu-cpu") else "fbgemm-gpu"
    return module


def _remedy(module: str, reason: str) -> str:
    if NO_SCRATCH in reason:
        return SCRATCH_HINT
    distribution = _distribution(module)
    version = _version_of(distribution)
    if version is None or "No module named" in reason:
        missing = re.search(r"No module named '([\w.]+)'", reason)
        needed = missing[1].split(".")[0] if missing else module
        return "pip install -e ." if needed in ("torch", "torchrec", "fbgemm_gpu") else f"pip install {needed}"
    public, _, build = version.partition("+")
    index = f" --index-url {_CPU_INDEX}" if distribution == "torch" and build == "cpu" else ""
    return f"{_INSTALL} --no-deps{index} {distribution}=={public}"
