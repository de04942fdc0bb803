"""Chooses the build of fbgemm-gpu; the rest of the package's configuration is in pyproject.toml.

torchrec requires `fbgemm-gpu`, whose CUDA build cannot be imported without an NVIDIA driver. For machines without one
there is `fbgemm-gpu-cpu`; the two own the same files, so only one of them may be installed. The empty project in
`shims/` has the name fbgemm-gpu and version 1.8.0+cpu, and requires `fbgemm-gpu-cpu`.
"""

import ctypes
import os
import tempfile
from pathlib import Path

from setuptools import setup

BACKENDS = ("cpu", "cuda")
FBGEMM = "1.8.0"  # pairs with torch 2.13; see the table in fbgemm_gpu/__init__.py


def nvidia_driver_present() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def fbgemm_requirement() -> str:
    backend = os.environ.get("DLRMCTL_BACKEND") or ("cuda" if nvidia_driver_present() else "cpu")
    if backend not in BACKENDS:
        raise SystemExit(f"error: DLRMCTL_BACKEND={backend!r} must be one of {', '.join(BACKENDS)}")
    if backend == "cuda":
        return f"fbgemm-gpu=={FBGEMM}"
    if "DLRMCTL_EDITABLE" not in os.environ:  # a wheel must not name a folder of this machine
        return f"fbgemm-gpu=={FBGEMM}+cpu"
    shim = Path(__file__).resolve().parent / "shims" / "fbgemm-gpu-cpu"
    return f"fbgemm-gpu @ {shim.as_uri()}"


# A build directory in the tree would put deleted files into the next wheel.
with tempfile.TemporaryDirectory() as build_base:
    setup(
        install_requires=[
            "torch==2.13.0",
            "torchrec==1.8.0",
            fbgemm_requirement(),
            "typer>=0.29,<1",
            "rich>=13.9",
            "numpy>=1.26",
            "polars>=1.30,<3",
            "platformdirs>=4.2",
            "tomli-w>=1.0",
            "matplotlib>=3.9",
            "safetensors>=0.5",
            "tensorboard>=2.16",
        ],
        options={"build": {"build_base": build_base}},
    )
