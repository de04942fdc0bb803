"""The README's commands work, its map is the tree, and what it names exists."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.dlrmctl.commands import in_process

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = ("dlrmctl", "data", "embeddings", "models", "optim")


def _block_after(mark: str) -> list[str]:
    found = re.search(re.escape(mark) + r"\n```bash\n(.*?)```", README, re.DOTALL)
    assert found, mark
    return found[1].strip().splitlines()


def test_the_tour_works_from_raw_files_to_torchrun(tmp_path: Path):
    made = in_process("data", "synthesize", "--rows", "4000", "-o", tmp_path / "train.txt")
    assert made.status == 0, made.err
    # The installed command stands beside the interpreter that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in _block_after("<!-- run -->") + _block_after("<!-- run: afterwards -->"):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip() or command.startswith("dlrmctl plot"), command  # a picture is its answer
    for run in ("first", "two-ranks", "torchrun"):
        assert (tmp_path / "runs" / run / "results.json").exists()
    for picture in ("curves", "calibration", "frontier", "frequencies", "step"):
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_set_up_commands_are_single_lines_that_ci_can_find():
    assert _block_after("<!-- setup: train -->")[0].endswith("dlrmctl train --dataset synthetic")
    assert _block_after("<!-- setup: tests -->")[0].endswith("pytest")


def test_the_map_names_every_folder():
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"}
    section = README.split("## The map")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ")]
    named = re.findall(r"([a-z]+)/", " ".join(lines))
    assert sorted(named) == sorted([*(folder.name for folder in folders), "tests", "shims"])
    assert len(lines) <= 20


def test_files_and_modules_that_are_named_exist():
    for name in re.findall(rf"`((?:tests|{'|'.join(ROOMS)})/[\w/]+\.py)`", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(dlrmctl(?:\.\w+){2,})`", README):
        assert find_spec(name), name


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_imports_of_python_snippets_work(snippet: str):
    imports = [node for node in ast.parse(snippet).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec("\n".join(map(ast.unparse, imports)), {})
