"""`models.py`, `data/`, ... in the user's own directory change nothing: the libraries are `dlrmctl.models`, ..."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dlrmctl.commands import SMALL, environment

BIN = Path(sys.executable).parent
ALL_IMPORTED = "import dlrmctl.data.reader, dlrmctl.embeddings.collection, dlrmctl.models.dlrm, dlrmctl.optim.schedule"
ARGUMENTS = [*SMALL, "--synthetic-rows", "1000", "--max-steps", "2", "--evaluations", "1", "--run-dir", "run"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Holds a file or a folder of every library's name; each ends the program that imports it."""
    for name in ("models", "optim", "errors", "settings"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    for name in ("data", "embeddings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    return tmp_path


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "dlrmctl", "train", *ARGUMENTS, "--nproc", "2"],
        ["torchrun", "--standalone", "--nproc-per-node", "1", "--no-python", "dlrmctl", "train", *ARGUMENTS],
    ],
    ids=["module", "script of torchrun"],
)
def test_a_training_starts(command: list[str], directory: Path):
    assert json.loads(_run(*command, "--json", cwd=directory))["steps"] == 2


def test_python_imports_the_package(directory: Path):
    # `python -c`, as a session and a notebook, and a script each have the directory first on their path.
    show = "import sys; print(sys.path[0])"
    assert _run(sys.executable, "-c", f"{ALL_IMPORTED}; {show}", cwd=directory) == "\n"
    (directory / "script.py").write_text(f"{ALL_IMPORTED}; {show}")
    assert _run(sys.executable, "script.py", cwd=directory).strip() == str(directory)
