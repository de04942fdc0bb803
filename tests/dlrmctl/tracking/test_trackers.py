"""Trackers get the numbers of metrics.jsonl: read by TensorBoard, from a server of MLflow, and from files of wandb."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import Config
from dlrmctl.tracking.tracker import FILES
from dlrmctl.tracking.tracking import tracked
from tests.dlrmctl.commands import SMALL, in_process


def scalars(run: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_events_hold_what_metrics_hold_after_a_resume_too(tmp_path: Path):
    run = tmp_path / "run"
    arguments = ["train", *SMALL, "--synthetic-rows", 5_000, "--evaluations", 3, "--tracker", "tensorboard"]
    assert in_process(*arguments, "--max-steps", 12, "--run-dir", run).status == 0
    assert in_process("train", "--resume", run, "--max-steps", 0).status == 0
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for kind, name in (("train", "loss"), ("validation", "ne")):
        recorded = {entry["step"]: entry[name] for entry in entries if entry["kind"] == kind}
        seen = scalars(run, f"{kind}/{name}")
        assert seen.keys() == recorded.keys()
        for step, value in recorded.items():
            assert abs(seen[step] - value) <= 2**-24 * abs(value) * 1.01  # events are float32


def test_without_the_flag_there_are_no_events(tmp_path: Path):
    assert in_process("train", *SMALL, "--synthetic-rows", 2_000, "--run-dir", tmp_path / "run").status == 0
    assert not (tmp_path / "run" / "events").exists()


def _answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{address}/health") as answer:
        return bool(answer.status == 200)
    return False


@contextmanager
def mlflow_server(place: Path) -> Iterator[str]:
    """A server with its SQLite store, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}", "--artifacts-destination", str(place / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
    with (place / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while not _answers(address):
            assert time.monotonic() < deadline, (place / "server.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow  # starts a server
def test_mlflow_gets_settings_metrics_results_and_files_also_of_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    arguments = ["train", *SMALL, "--synthetic-rows", 5_000, "--evaluations", 3, "--tracker", "mlflow,tensorboard"]
    with mlflow_server(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begun = in_process(*arguments, "--max-steps", 12, "--run-dir", run)
        assert begun.status == 0, begun.err
        assert in_process("train", "--resume", run, "--max-steps", 0).status == 0
        client = MlflowClient(address)
        (found,) = client.search_runs([client.get_experiment_by_name("dlrmctl").experiment_id])
        assert found.info.status == "FINISHED"
        assert found.info.run_name == "run"
        assert found.data.params["train.batch_size"] == "256"
        results = json.loads((run / "results.json").read_text())
        assert found.data.metrics["test/auc"] == results["test"]["auc"]
        assert {file.path for file in client.list_artifacts(found.info.run_id)} == set(FILES)
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        recorded = {entry["step"]: entry["ne"] for entry in entries if entry["kind"] == "validation"}
        history = client.get_metric_history(found.info.run_id, "validation/ne")
        assert {metric.step: metric.value for metric in history} == recorded
        assert not [tag for tag in found.data.tags if "user" in tag or "git" in tag or "source" in tag]
    assert scalars(run, "validation/ne").keys() == recorded.keys()


@pytest.mark.slow  # starts a server
def test_a_training_goes_on_when_its_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with mlflow_server(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        run = RunDirectory(tmp_path / "run", writes=True)
        run.path.mkdir()
        config = Config.of(tracker="mlflow")
        ending = tracked(config, run, first_step=0)
        ending.__enter__()
    run.record({"kind": "train", "step": 1, "loss": 0.5})
    said = io.StringIO()
    with redirect_stderr(said):
        ending.__exit__(None, None, None)
    assert "MLflow did not get everything" in said.getvalue()
    assert json.loads((run.path / "metrics.jsonl").read_text())["loss"] == 0.5


def test_a_server_that_does_not_answer_is_told_before_there_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = in_process("train", *SMALL, "--synthetic-rows", 2_000, "--tracker", "mlflow", "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert done.err.startswith("error: MLflow at http://127.0.0.1:9 does not answer: connection refused")
    assert not (tmp_path / "run").exists()


def test_wandb_writes_the_run_offline_and_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    arguments = ["train", *SMALL, "--synthetic-rows", 2_000, "--tracker", "wandb", "--run-dir", run]
    assert in_process(*arguments).status == 0
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while b"test/auc" not in (content := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.2)  # wandb's own process writes the file, also after the run has ended
    for name in (b"optim.dense_optimizer", b"validation/ne", b"test/auc"):
        assert name in content
    for name in (str(Path(sys.executable).parent), sys.argv[0]):
        assert name.encode() not in content


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("wand", "train.tracker = 'wand' must be one of"),
        ("mlflow,mlflow", "names mlflow twice"),
        (",", "an empty value"),
    ],
)
def test_a_wrong_tracker_is_one_line(value: str, message: str):
    done = in_process("train", *SMALL, "--tracker", value)
    assert done.status == 2
    assert message in done.err
