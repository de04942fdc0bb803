"""`dlrmctl tune` on a small store: trials without test scores, and one comparison at the end."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dlrmctl.settings.config import resolve
from dlrmctl.settings.toml import read_settings
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import Done, in_process, start

pytest.importorskip("optuna")  # of the extra [test]

SPACE = """\
[embeddings]
dim = [4, 8]
[optim]
dense_lr = { low = 0.001, high = 0.1, log = true }
sparse_lr = { low = 0.01, high = 1, log = true }
"""
MODEL = ("--bottom-mlp", "16-8", "--dense-optimizer", "adagrad", "--top-mlp", "16-1", "--epochs", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a search space, and a finished study."""
    directory = tmp_path_factory.mktemp("tune")
    (directory / "train.txt").write_text(criteo_lines(1400))
    assert in_process("prepare", "criteo", directory / "train.txt", "-o", directory / "store").status == 0
    (directory / "space.toml").write_text(SPACE)
    done = tuned(directory, "study", 3, "--seeds", "2", "--plot", directory / "study.svg", "--json")
    assert done.status == 0, done.err
    (directory / "answer.json").write_text(done.out)
    (directory / "messages").write_text(done.err)
    return directory


def arguments(place: Path, study: str, trials: int) -> list[str | Path]:
    space = ("--space", place / "space.toml", "--study", place / study)
    return ["tune", "--data", place / "store", *MODEL, "--dim", "8", *space, "--trials", str(trials)]


def tuned(place: Path, study: str, trials: int, *more: str | Path) -> Done:
    return in_process(*arguments(place, study, trials), *more)


def test_trials_have_no_test_scores_and_the_end_compares_new_seeds(place: Path):
    found = json.loads((place / "answer.json").read_text())
    assert json.loads((place / "study" / "results.json").read_text()) == found
    assert sum(found["counts"].values()) == 3
    default = found["trials"][0]
    assert default["is_default"]
    assert found["default"]["validation"] == default["score"]
    assert found["best"]["validation"] <= default["score"]
    for trial in found["trials"]:
        run = place / "study" / f"trial-{trial['number']}"
        results = json.loads((run / "results.json").read_text())
        assert "test" not in results
        assert results["validation"]["ne"] == pytest.approx(trial["score"], rel=1e-12)
        assert not (run / "checkpoints").exists()
        assert not (run / "features").exists()
        recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert min(entry["ne"] for entry in recorded if entry["kind"] == "validation") == trial["score"]
    assert "trial 0  NE" in (place / "messages").read_text()
    for group in found["final"].values():
        assert group["seeds"] == [1, 2]
        assert all(run["test"]["examples"] == 100 for run in group["runs"])
    if found["best"]["trial"]:
        assert (found["comparison"]["split"], found["comparison"]["b"]["seeds"]) == ("test", 2)


def test_the_best_settings_are_a_file_that_train_takes(place: Path):
    found = json.loads((place / "answer.json").read_text())
    config = resolve(read_settings(place / "study" / "best.toml"), {})
    for name, value in found["best"]["settings"].items():
        if name != "dim":
            assert getattr(config.optim, name) == pytest.approx(value)
    assert config.model.bottom_mlp[-1] == config.embeddings.dim
    listed = in_process("runs", place / "study", "--json").json()
    assert {Path(run["run"]).name for run in listed} >= {f"trial-{number}" for number in range(3)}


def test_a_finished_study_is_shown_again_without_training(place: Path):
    before = {path: path.stat().st_mtime_ns for path in place.glob("study/*/*/results.json")}
    picture = (place / "study.svg").read_text()
    done = tuned(place, "study", 3, "--seeds", "2", "--plot", place / "again.svg")
    assert done.status == 0, done.err
    assert "validation NE" in done.out
    assert "train --config" in done.out
    assert "3 of 3 trials" in done.err
    assert {path: path.stat().st_mtime_ns for path in place.glob("study/*/*/results.json")} == before
    assert "best so far" in picture


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--sparse-lr", "0.1"), "a study with other settings: optim.sparse_lr differs"),
        (("--precision", "bf16"), "a study with other settings: train.precision differs"),
        (("--pruner", "asha"), "a study with another pruner"),
        (("--plot", "study.gif"), "study.gif"),
        (("--seeds", "4"), "default has 2 seeds, not 4"),
        (("--minutes", "0"), "--minutes = 0 must be above 0"),
    ],
)
def test_another_search_in_the_directory_is_refused(place: Path, more: tuple[str, ...], message: str):
    done = tuned(place, "study", 3, *more)
    assert done.status == 2
    assert message in " ".join(done.err.split())


def test_a_killed_search_is_continued(place: Path):
    process = start(*arguments(place, "killed", 2), "--seeds", "0", cwd=place)
    deadline = time.monotonic() + 100
    while not list(place.glob("killed/trial-*/metrics.jsonl")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = tuned(place, "killed", 2, "--seeds", "0", "--json")
    assert done.status == 0, done.err
    found = done.json()
    assert [trial["state"] for trial in found["trials"]].count("repeated") <= 1  # it may have ended just before
    assert sum(number for state, number in found["counts"].items()) == 2
    assert found["default"] is not None
    assert found["final"] is None


def test_trials_are_not_compared_on_a_single_label(tmp_path: Path):
    (tmp_path / "my.toml").write_text('label = "y"\nsparse = ["user"]\n')
    (tmp_path / "my.csv").write_text("y,user\n" + "".join(f"{int(n % 2 and n < 120)},u{n % 7}\n" for n in range(140)))
    store = tmp_path / "store"
    assert in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "my.csv", "-o", store).status == 0
    for command in (("tune", "--study", tmp_path / "study"), ("baseline", "--run-dir", tmp_path / "run")):
        done = in_process(*command, "--data", store)
        assert done.status == 2, done.err
        assert f"all 10 validation labels in {store} are 0, so " in " ".join(done.err.split())
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "run").exists()
    assert in_process("baseline", "--data", store, "--run-dir", tmp_path / "run", "--l2", "3").status == 0


def test_without_optuna_the_command_names_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = in_process("tune", "--data", tmp_path / "nowhere", "--study", tmp_path / "study")
    assert done.status == 2
    assert "tune needs Optuna, which is not installed" in done.err
    assert "pip install" in done.err
    assert not (tmp_path / "study").exists()
