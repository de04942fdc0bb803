"""Tables are compressed one at a time, so that memory depends on the largest one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROWS, DIM = (2_000_000, 1_500_000, 1_000_000), 16  # 122 MiB and smaller

PROGRAM = """
import resource, sys
from dlrmctl.cli.main import run_command
def run(file, out):
    assert run_command(["compress-embeddings", file, "-o", out, "--min-rows", "1", *sys.argv[1:]]) == 0
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
run("small.safetensors", "small")    # code and libraries are loaded
before = peak()
run("large.safetensors", "large")
print(peak() - before)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory")
    for name, heights in (("small", (3000, 2000)), ("large", ROWS)):
        save_file({f"t{i}": torch.randn(rows, DIM) for i, rows in enumerate(heights)}, path / f"{name}.safetensors")
    return path


def test_memory_is_below_twice_the_largest_table(files: Path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, "--method", "int8"],
        **{"cwd": files, "capture_output": True, "text": True, "check": True},
    )
    # The source is mapped, and what was read of it counts here.
    assert int(done.stdout.split()[-1]) < 2 * 4 * ROWS[0] * DIM
