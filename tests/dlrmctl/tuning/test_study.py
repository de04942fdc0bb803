"""A study: shared by processes, and continued after one of them has died."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config
from dlrmctl.tuning.space import SearchSpace
from dlrmctl.tuning.study import Study, best_of

pytest.importorskip("optuna")  # of the extra [test]

SPACE = "[optim]\ndense_lr = { low = 0.001, high = 0.1, log = true }\nsparse_lr = [0.05, 0.1, 0.2]"
# Claims trials until there are 8; the score is a function of the settings.
WORK = """
import sys, time
from pathlib import Path
from tests.dlrmctl.tuning.test_study import study_in
study = study_in(Path(sys.argv[1]), storage=sys.argv[2] or None)
with study.opened("data"):
    while claim := study.claim(8):
        print(claim.number, flush=True)
        time.sleep(float(sys.argv[3]))
        study.complete(claim, claim.values["dense_lr"], "ne")
"""


def study_in(directory: Path, *, space: str = SPACE, storage: str | None = None) -> Study:
    config = Config.of(dataset="synthetic").fitted(64_000, 1)
    return Study(directory, SearchSpace.of(tomllib.loads(space), "space.toml"), config, storage, "median")


def worker(directory: Path, *, storage: str = "", seconds: float = 0.0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORK, str(directory), storage, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("storage", ["", "journal"])
def test_processes_share_the_trials_of_a_study(tmp_path: Path, storage: str):
    workers = [worker(tmp_path / "study", storage=storage, seconds=0.05) for _ in range(2)]
    numbers = [sorted(map(int, process.communicate(timeout=100)[0].split())) for process in workers]
    assert [process.returncode for process in workers] == [0, 0]
    assert sorted(numbers[0] + numbers[1]) == list(range(8))
    study = study_in(tmp_path / "study", storage=storage or None)
    with study.opened("data"):
        trials = study.trials()
        assert [trial.state for trial in trials] == 8 * ["complete"]
        assert trials[0].is_default
        assert study.config_of(trials[0]) == study.config
        assert len({trial.values["dense_lr"] for trial in trials}) == 8
        best = best_of(trials)
        assert best is not None
        assert best.score == min(trial.values["dense_lr"] for trial in trials)
        assert set(study.importances()) == {"dense_lr", "sparse_lr"}
    assert not list((tmp_path / "study" / "workers").iterdir())


def test_a_trial_whose_process_was_killed_is_repeated_once(tmp_path: Path):
    study = study_in(tmp_path / "study")
    for attempt in range(2):
        process = worker(tmp_path / "study", seconds=100)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{attempt}\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with study.opened("data"):
        claim = study.claim(3)
        assert claim is not None
        states = [trial.state for trial in study.trials()]
        assert states == ["repeated", "failed", "running"]
        problem = study.trials()[1].problem
        assert problem is not None
        assert "died twice" in problem
        assert study.trials()[1].values == study.trials()[0].values
        assert [path.name for path in (tmp_path / "study" / "workers").iterdir()] == [study.worker]
        study.repeat(claim)  # as after Ctrl-C
        again = study.claim(3)
        assert again is not None
        assert again.values == claim.values
        assert study.running() == 1  # this process itself
        study.prune(again, "the loss is not finite")
        assert study.claim(2) is None


def test_a_trial_that_is_worse_than_the_median_ends_after_its_second_evaluation(tmp_path: Path):
    from dlrmctl.tuning.trial import reporter  # loads torch, which the processes of other tests do not need

    study = study_in(tmp_path / "study")
    opened = {"where": study.where, "name": study.name, "pruner": "median"}
    with study.opened("data"):
        for number in range(6):
            claim = study.claim(6)
            assert claim is not None
            scores: list[float] = []
            ends = reporter(opened, claim.key, scores)
            verdicts = [ends(number + score) for score in (0.9, 0.8, 0.85)]
            if number < 5:
                assert verdicts == [False, False, False]
                study.complete(claim, min(scores), "ne")
            else:
                assert verdicts[0] is False
                assert verdicts[1] is True
                study.prune(claim)
        assert [trial.score for trial in study.trials()] == [number + 0.8 for number in range(6)]


def test_a_study_of_something_else_is_refused(tmp_path: Path):
    with study_in(tmp_path / "study").opened("data"):
        pass
    other = SPACE.replace("low = 0.001", "low = 0.002")
    with (
        pytest.raises(UserError, match=r"another search space: dense_lr differs"),
        study_in(tmp_path / "study", space=other).opened("data"),
    ):
        pass
    with pytest.raises(UserError, match="other data"), study_in(tmp_path / "study").opened("other"):
        pass
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    with pytest.raises(UserError, match="not a study"), study_in(tmp_path / "used").opened("data"):
        pass
    (tmp_path / "study" / "study.db").write_bytes(os.urandom(5000))
    with pytest.raises(UserError, match="cannot be opened"), study_in(tmp_path / "study").opened("data"):
        pass


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(tmp_path: Path):
    study = study_in(tmp_path / "study", storage="mysql://me:secret@nowhere/db")
    with pytest.raises(UserError) as error, study.opened("data"):
        time.sleep(0)
    assert "mysql" in error.value.message
    assert "secret" not in error.value.message
