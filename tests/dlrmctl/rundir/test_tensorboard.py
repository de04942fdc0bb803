"""TensorBoard's reader finds the numbers of metrics.jsonl."""

import json
from pathlib import Path

from tests.dlrmctl.commands import SMALL, in_process


def scalars(run: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_events_hold_what_metrics_hold_after_a_resume_too(tmp_path: Path):
    run = tmp_path / "run"
    arguments = ["train", *SMALL, "--synthetic-rows", 5_000, "--evaluations", 3, "--tensorboard"]
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
