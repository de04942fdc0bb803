"""Run directories: one writer at a time, no writes through links, unique names."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.errors import UserError
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.names import place_of_run
from dlrmctl.settings.config import Config
from tests.dlrmctl.commands import SMALL, Done, environment, in_process, start, wait_for_checkpoint

TRAIN = ["train", *SMALL, "--synthetic-rows", "2560", "--evaluations", "2"]
JOB = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    done = in_process(*TRAIN, "--run-dir", path)
    assert done.status == 0, done.err
    return path


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*JOB, "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def _refused(done: Done, words: str) -> None:
    assert done.status == 2, done.err
    assert [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert words in done.err
    assert "Traceback" not in done.err


# One writer.


def test_a_run_that_is_training_is_not_resumed_beside_it(tmp_path: Path):
    path = tmp_path / "run"
    arguments = ["--synthetic-rows", "2000000", "--checkpoint-every", "9", "--run-dir", path]
    process = start("train", *SMALL, *arguments, cwd=tmp_path)
    try:
        wait_for_checkpoint(path, process)
        _refused(in_process("train", "--resume", path), f"{path} is in use by another training process")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=200)
    assert "saved; continue with" in err
    assert in_process("runs", path).status == 0  # readers need no lock


def test_of_two_runs_that_are_given_one_directory_one_starts(tmp_path: Path):
    path = tmp_path / "run"
    both = [start(*TRAIN, "--run-dir", path, cwd=tmp_path) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser = next(err for process, err in zip(both, errors, strict=True) if process.returncode == 2)
    assert "already exists" in loser or "is in use by another training process" in loser


def test_an_empty_directory_is_taken_and_one_with_something_in_it_is_not(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with RunDirectory(tmp_path / "empty", writes=True).created():
        pass
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UserError, match="already exists"), RunDirectory(tmp_path / "used", writes=True).created():
        pass
    assert os.listdir(tmp_path / "used") == ["file"]


# Links.


@pytest.mark.parametrize("name", ["run.toml", "environment.json", "plan.json", "metrics.jsonl", "results.json"])
def test_a_resumed_run_writes_nothing_through_links(finished: Path, tmp_path: Path, name: str):
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    victim = tmp_path / "victim"
    shutil.move(copy / name, victim)
    (copy / name).symlink_to(victim)
    before = victim.read_bytes()
    for guess in (".partial", ".tmp"):
        (copy / Path(name).with_suffix(guess)).symlink_to(victim)
        (copy / f"{name}{guess}").symlink_to(victim)
    in_process("train", "--resume", copy, "--epochs", "2")
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", ["run.lock", "checkpoints", "features", "events"])
def test_a_part_of_a_run_that_leads_elsewhere_is_refused(finished: Path, tmp_path: Path, name: str):
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    victim = tmp_path / "victim"
    shutil.move(copy / name, victim) if (copy / name).exists() else victim.mkdir()
    (copy / name).symlink_to(victim)
    before = sorted(victim.rglob("*"))
    _refused(in_process("train", "--resume", copy, "--epochs", "2"), f"{copy / name} is a link")
    assert sorted(victim.rglob("*")) == before


def test_a_run_below_a_link_of_the_users_is_resumed(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "disk" / "run", symlinks=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "mine").symlink_to(tmp_path / "runs" / "run")
    for path in (tmp_path / "runs" / "run", tmp_path / "mine"):
        done = in_process("train", "--resume", path, "--json")
        assert done.status == 0, done.err


def test_a_directory_in_place_of_the_link_to_the_best_is_told_before_training(finished: Path, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))  # links are followed, as `cp -rL` does
    assert not (copy / "checkpoints" / "best").is_symlink()
    done = in_process("train", "--resume", copy)
    _refused(done, "checkpoints/best must be a link to the best checkpoint")
    assert in_process("evaluate", copy).status == 0


def test_what_killed_processes_left_is_removed_when_the_run_is_resumed(finished: Path, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    (copy / ".dlrmctl-new-0123456789abcdef").write_text("half")
    assert in_process("train", "--resume", copy).status == 0
    assert not [path for path in copy.rglob(".*") if path.name != ".metadata"]


# Names.


def test_names_of_runs_of_the_same_second_differ():
    assert len({place_of_run(Config())[0] for _ in range(200)}) == 200


@pytest.mark.parametrize(
    ("settings", "tables", "name"),
    [
        ({}, {}, "synthetic-full"),  # all are below the threshold
        ({"qr_threshold": 1000}, {}, "synthetic-qr"),
        ({"qr_threshold": 1000}, {"big": {"embedding": "hash"}}, "synthetic-hash"),
        ({"embedding": "full"}, {}, "synthetic-full"),
    ],
)
def test_a_run_is_named_after_the_tables_that_are_built(
    settings: dict[str, Any], tables: dict[str, dict[str, Any]], name: str
):
    config = Config.of(dataset="synthetic", tables=tables, **settings)
    path, _ = place_of_run(config, rows={"small": 100, "big": 5000})
    assert path.name.startswith(f"{name}-")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"SLURM_JOB_ID": "4711"}, "slurm-4711"),
        ({"TORCHELASTIC_RUN_ID": "../my job"}, "torchrun-..-my-job"),
        (
            {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": "/tmp/x/none_ab12/attempt_0/0/error.json"},
            "torchrun-none_ab12",
        ),
        (  # a job of Slurm that is started again has another torchrun
            {"SLURM_JOB_ID": "4711", "TORCHELASTIC_RUN_ID": "5e1f"},
            "slurm-4711",
        ),
    ],
)
def test_the_name_of_a_jobs_run_follows_from_job_and_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], name: str
):
    monkeypatch.chdir(tmp_path)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    path, continued = place_of_run(Config())
    assert path == place_of_run(Config())[0]
    assert path.parent == Path("runs")
    assert f"-{name}-" in path.name
    assert not continued
    assert len({place_of_run(Config.of(seed=seed))[0] for seed in range(5)}) == 5


def test_a_job_that_is_started_again_continues_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    first = in_process(*TRAIN, "--max-steps", "9", "--json")
    assert first.status == 0, first.err
    found = Path(first.json()["run"])
    (found / "results.json").unlink()  # as if it had been ended before its last step
    again = in_process(*TRAIN, "--max-steps", "9", "--json")
    assert again.status == 0, again.err
    assert "resumed at step 9" in again.err
    assert again.json() == first.json()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert in_process(*TRAIN, "--max-steps", "9", "--json").json() == first.json()
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    other = in_process(*TRAIN, "--max-steps", "9", "--json").json()  # the same command a second time in a job
    assert Path(other["run"]) != found
    assert other["test"] == first.json()["test"]


def test_a_job_continues_its_run_in_a_given_directory_and_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    train = [*TRAIN, "--max-steps", "9", "--run-dir", tmp_path / "run", "--json"]
    refusal = "run already exists"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    first = in_process(*train)
    assert first.status == 0, first.err
    _refused(in_process(*train), refusal)  # finished: the same command a second time in a job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert in_process(*train).json() == first.json()
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    (tmp_path / "run" / "results.json").unlink()  # as if it had been ended before its last step
    _refused(in_process(*train, "--seed", "5"), refusal)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    done = in_process(*train)
    _refused(done, refusal)
    assert "hint: use --resume" in done.err
    monkeypatch.delenv("SLURM_JOB_ID")
    _refused(in_process(*train), refusal)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "5e1f")
    _refused(in_process(*train), refusal)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    again = in_process(*train)
    assert "resumed at step 9" in again.err
    assert again.json() == first.json()


def test_a_job_that_was_ended_before_the_settings_were_written_begins_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()
    (tmp_path / "run" / "environment.json").write_text('{"job": "slurm-12"}')
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    done = in_process(*TRAIN, "--max-steps", "2", "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([], id="named after the job", marks=pytest.mark.slow),
        pytest.param(["--run-dir", "runs/given"], id="given"),
    ],
)
def test_torchrun_starts_a_run_again_where_it_was(tmp_path: Path, given: list[str]):
    """A rank that is killed once: the second attempt of the launcher continues the run of the first."""
    program = (
        "import os, signal, sys\n"
        "from dlrmctl.rundir.checkpoint import Checkpoints\n"
        "from dlrmctl.cli.main import main\n"
        "tidy = Checkpoints.keep\n"
        "def keep(self, *arguments):\n"
        "    tidy(self, *arguments)\n"
        "    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Checkpoints.keep = keep\n"
        "main()\n"
    )
    (tmp_path / "program.py").write_text(program)
    ranks = "1" if given else "2"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]

    command += ["--max-restarts", "1", "program.py", *TRAIN, *given, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [Path(json.loads(done.stdout)["run"]).name]


# What is no run that can be continued.


def test_a_compressed_model_is_not_resumed(finished: Path, tmp_path: Path):
    done = in_process("compress-embeddings", finished, "-o", tmp_path / "small", "--method", "int8")
    assert done.status == 0, done.err
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "small").iterdir() if path.is_file())
    _refused(in_process("train", "--resume", tmp_path / "small"), "small is a compressed model")
    shutil.copytree(tmp_path / "small", tmp_path / "damaged")
    (tmp_path / "damaged" / "manifest.json").unlink()
    _refused(in_process("train", "--resume", tmp_path / "damaged"), "damaged is a compressed model")
    assert before == sorted((path.name, path.read_bytes()) for path in (tmp_path / "small").iterdir() if path.is_file())


def test_a_run_that_ended_before_its_first_checkpoint_starts_over_and_runs_says_so(finished: Path, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    shutil.rmtree(copy / "checkpoints")
    (copy / "results.json").unlink()
    listed = in_process("runs", tmp_path)
    assert "has no checkpoint yet and starts over when resumed" in listed.out
    done = in_process("train", "--resume", copy, "--json")
    assert done.status == 0, done.err
    assert "no checkpoint yet, starting over" in done.err
    assert done.json()["test"] == json.loads((finished / "results.json").read_text())["test"]


def test_a_finished_run_that_cannot_be_written_is_scored_and_not_resumed(finished: Path, tmp_path: Path):
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    if os.geteuid() == 0:  # root may write anywhere
        (copy / "run.lock").unlink(missing_ok=True)
        (copy / "run.lock").mkdir()
    else:
        copy.chmod(0o500)
    try:
        assert in_process("evaluate", copy).status == 0
        done = in_process("train", "--resume", copy)
        assert done.status == 2
        assert "cannot write" in done.err
    finally:
        copy.chmod(0o700)


def test_settings_of_a_run_are_those_that_were_written(finished: Path, tmp_path: Path):
    text = (finished / "run.toml").read_text()
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    for damaged in (
        "",
        "[train]\n",
        text.replace("batch_size = 256", "batch_size = 128"),
        text[: text.index("[train]")],
    ):
        (copy / "run.toml").write_text(damaged)
        for command in (["evaluate", copy], ["train", "--resume", copy]):
            _refused(in_process(*command), "run.toml: edited or damaged")
    (copy / "run.toml").write_text(text.replace("[train]", "# a comment\n[train]"))
    assert in_process("evaluate", copy).status == 0


def test_resume_auto_starts_a_run_or_continues_it(tmp_path: Path):
    train = [*TRAIN, "--max-steps", "9", "--run-dir", tmp_path / "run", "--resume", "auto", "--json"]
    first = in_process(*train)
    assert first.status == 0, first.err
    assert "resumed" not in first.err
    (tmp_path / "run" / "results.json").unlink()  # as if it had been ended before its last step
    again = in_process(*train, "--interaction", "cat")
    assert "resumed at step 9" in again.err
    assert again.json() == first.json()
    assert f"warning: {tmp_path / 'run'} exists and keeps its settings: model.interaction = dcn (not cat)" in again.err
    late = in_process("train", "--resume", tmp_path / "run", "--init-from", tmp_path / "run")
    _refused(late, "--init-from contradict: the run has started")
    _refused(in_process(*TRAIN, "--resume", "auto"), "--resume auto needs the directory of the run")
