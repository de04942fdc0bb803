"""Rules that all commands follow."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dlrmctl.cli.app import whole_application
from dlrmctl.settings.config import Config
from dlrmctl.settings.toml import write_settings
from tests.dlrmctl.commands import in_process

ROOT = Path(__file__).resolve().parents[3]


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from _leaves(inner, (*path, name))
    if path and not getattr(command, "commands", {}):
        yield path, command


COMMANDS = dict(_leaves(typer.main.get_command(whole_application())))
NAMES = {" ".join(path): command for path, command in COMMANDS.items()}

# For each command a mistake in its own arguments, and what the one line about it must name.
MISTAKES = {
    "baseline": (["--l2", "-1"], "--l2 = -1"),
    "bench all": (["--plot", "picture.gif"], "picture.gif"),
    "bench baseline": (["--passes", "0"], "--passes = 0"),
    "bench compression": (["--rounds", "0"], "--rounds = 0"),
    "bench convergence": (["--seeds", "none"], "none"),
    "bench data": (["--rounds", "0"], "--rounds = 0"),
    "bench embeddings": (["--factors", "-1,1"], "-1,1"),
    "bench noise": (["--steps", "0"], "--steps = 0"),
    "bench shampoo": (["--periods", "x"], "--periods"),
    "bench step": (["--rows-cap", "0"], "--rows-cap = 0"),
    "calibrate": (["nowhere"], "nowhere"),
    "compare": (["nowhere", "nowhere-else"], "nowhere"),
    "compress-embeddings": (["nowhere", "-o", "out", "--target-ratio", "0.5x"], "0.5x"),
    "daily": (["nowhere", "-o", "out"], "nowhere"),
    "data show": (["nowhere"], "nowhere"),
    "data synthesize": (["--rows", "-5", "-o", "a.tsv"], "-5"),
    "doctor": (["--no-such-flag"], "--no-such-flag"),
    "evaluate": (["nowhere"], "nowhere"),
    "export": (["nowhere", "-o", "model.pt2"], "nowhere"),
    "plan": (["--preset", "mlperf", "--world-size", "0", "--hbm", "80GiB"], "--world-size = 0"),
    "plot": (["nowhere", "-o", "curves.png"], "nowhere"),
    "predict": (["nowhere", "rows.tsv", "-o", "out.csv"], "nowhere"),
    "prepare": (["criteo", "nowhere.tsv", "-o", "store"], "nowhere.tsv"),
    "runs": (["nowhere"], "nowhere"),
    "serve": (["nowhere.dlrm"], "nowhere.dlrm"),
    "train": (["--epochs", "0"], "--epochs = 0"),
    "tune": (["--trials", "0"], "--trials = 0"),
}


def test_no_help_loads_a_heavy_library():
    program = (
        "import sys\nfrom dlrmctl.cli.main import run_command\n"
        f"for path in {[list(path) for path in COMMANDS]!r} + [[], ['data'], ['bench']]:\n"
        "    assert run_command([*path, '--help']) == 0, path\n"
        "    heavy = {'torch', 'torchrec', 'fbgemm_gpu', 'polars', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (path, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == len(COMMANDS) + 3


def test_every_command_has_its_mistake():
    assert set(MISTAKES) == set(NAMES)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    arguments, word = MISTAKES[name]
    done = in_process(*name.split(), *arguments)
    assert done.status == 2, done.err
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert word in done.err, done.err
    assert "Traceback" not in done.err
    assert not done.out
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_every_answer_can_be_had_as_json():
    without = {name for name, command in NAMES.items() if not any("--json" in p.opts for p in command.params)}
    assert without == {"plot"}  # its answer is the picture


@pytest.mark.parametrize("command", ["runs DIR", "runs DIR --json", "data --help"])
@pytest.mark.parametrize(
    ("redirected", "status", "words"),
    [
        ("> /dev/full", 2, "error: standard output cannot be written: No space left on device"),
        (">&-", 2, "error: standard output is closed"),
        ("2>&-", 0, ""),
        ("| true", 1, ""),
    ],
)
def test_an_answer_that_cannot_be_written(command: str, redirected: str, status: int, words: str, tmp_path: Path):
    (tmp_path / "a").mkdir()
    write_settings(tmp_path / "a" / "run.toml", Config().to_dict())
    dlrmctl = f"{sys.executable} -P -m dlrmctl {command.replace('DIR', str(tmp_path))}"
    # The reader is gone before anything is written.
    script = (
        f"set -o pipefail; ( sleep 0.3; {dlrmctl} ) {redirected}" if "|" in redirected else f"{dlrmctl} {redirected}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.split("\nhint: ")[0].strip() == words


def test_a_terminal_without_the_signs_gets_them_as_escapes(tmp_path: Path):
    (tmp_path / "\u00fcber").mkdir()
    write_settings(tmp_path / "\u00fcber" / "run.toml", Config().to_dict())
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-P", "-m", "dlrmctl", "runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\\xfcber" in done.stdout
