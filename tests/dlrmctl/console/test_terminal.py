"""Output in a terminal of 80 columns: an early message, unbroken words and numbers, and a bar that is removed."""

import json
import re
from pathlib import Path

import pytest

from tests.dlrmctl.commands import SMALL, run
from tests.dlrmctl.terminal import WIDTH, Shown, in_terminal, in_terminal_here

NAME = "a-long-name-for-a-run-of-which-no-letter-may-be-lost"
TRAINING = [*SMALL, "--synthetic-rows", "10000", "--evaluations", "2", "--log-every", "1000"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("terminal")


@pytest.fixture(scope="module")
def training(place: Path) -> Shown:
    shown = in_terminal("train", *TRAINING, "--run-dir", Path("runs") / NAME, cwd=place)
    assert shown.status == 0, shown.text
    return shown


def _fits(shown: Shown) -> None:
    """No line is wider than the terminal, so that none is broken by it."""
    assert [line for line in shown.lines if len(line) > WIDTH] == []


def test_training_shows_its_loss_and_speed_from_the_first_steps(training: Shown):
    _fits(training)
    assert training.lines[0] == "loading PyTorch ..."
    assert re.search(r"step  0 of 39 ━.* 0 %", "\n".join(training.lines))
    assert re.search(r"loss \d\.\d{4}  NE \d\.\d{4}  examples/s [\d,]+  memory", "\n".join(training.lines))
    validations = [line for line in training.lines if re.match(r"step \d+  validation  log loss 0\.\d{4}  NE ", line)]
    assert len(validations) == 2


def test_a_file_gets_plain_lines(place: Path):
    done = run("train", *TRAINING, "--run-dir", "runs/piped", cwd=place)
    assert done.status == 0, done.err
    assert "\x1b" not in done.err + done.out
    assert "loading" not in done.err
    assert re.search(r"^step 1  loss \d\.\d{4}  NE \d\.\d{4}  examples/s [\d,]+  memory", done.err, re.MULTILINE)


def test_a_short_run_has_a_training_curve_to_its_last_step(training: Shown, place: Path):
    lines = (place / "runs" / NAME / "metrics.jsonl").read_text().splitlines()
    steps = [entry["step"] for entry in map(json.loads, lines) if entry["kind"] == "train"]
    assert len(steps) >= 20
    assert steps[-1] == 39


def test_names_of_runs_are_whole(training: Shown, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    shown = in_terminal_here("runs", "runs", monkeypatch=monkeypatch)
    _fits(shown)
    assert sum(NAME in line for line in shown.lines) == 1
    assert re.search(r"0\.\d{4} ±0\.\d{4}", shown.text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--preset", "mlperf", "--world-size", "8", "--hbm", "80GiB"],
        ["compare", f"runs/{NAME}", f"runs/{NAME}"],
        ["evaluate", f"runs/{NAME}", "--deciles", "--slice", "cat_1"],
        ["compress-embeddings", f"runs/{NAME}", "-o", "smaller", "--max-ne-increase", "1%", "--explain"],
        ["doctor", "--no-smoke"],
        pytest.param(["bench", "step", "--quick", "--rounds", "1"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_nothing_is_wider_than_the_terminal(
    training: Shown, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    monkeypatch.chdir(place)
    shown = in_terminal_here(*arguments, monkeypatch=monkeypatch)
    assert shown.status in (0, 1), shown.text
    assert "Traceback" not in shown.text
    # A path may be longer than any line of the terminal.
    assert [line for line in shown.lines if len(line) > WIDTH and max(map(len, line.split())) < WIDTH - 2] == []
