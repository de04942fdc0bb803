"""`train --seeds`: one run per seed, summarized, resumed after an interruption, and compared."""

import json
import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.dlrmctl.commands import SMALL, in_process, start

TRAIN = ("train", *SMALL, "--synthetic-rows", 9_000, "--evaluations", 1)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeds")
    for name, seed, rate in (("a", 0, "0.05"), ("same", 10, "0.05"), ("poor", 0, "0")):
        arguments = ("--seeds", 3, "--seed", seed, "--sparse-lr", rate, "--qr-lr", rate, "--run-dir", directory / name)
        done = in_process(*TRAIN, *arguments, "--json")
        assert done.status == 0, done.err
        (directory / f"{name}.json").write_text(done.out)
    return directory


def test_each_seed_is_the_run_that_it_is_alone_and_the_summary_is_theirs(groups: Path, tmp_path: Path):
    found = json.loads((groups / "a.json").read_text())
    assert found["seeds"] == [0, 1, 2]
    alone = in_process(
        *(*TRAIN, "--seed", 1, "--sparse-lr", 0.05, "--qr-lr", 0.05, "--run-dir", tmp_path / "alone", "--json")
    ).json()
    assert found["runs"][1]["test"] == alone["test"]
    values = [run["test"]["ne"] for run in found["runs"]]
    assert len(set(values)) == 3
    assert found["test"]["ne"]["mean"] == pytest.approx(statistics.fmean(values), rel=1e-12)  # float64 sums
    assert found["test"]["ne"]["sd"] == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert json.loads((groups / "a" / "results.json").read_text()) == found


def test_settings_are_compared_over_rows_and_seeds(groups: Path):
    better = in_process("compare", groups / "a", groups / "poor", "--json").json()
    assert (better["a"]["seeds"], better["b"]["seeds"]) == (3, 3)
    assert better["ne"]["difference"] > 0
    assert better["ne"]["p"] < 0.05
    assert 0 < better["ne"]["se_seeds"] <= better["ne"]["se"]
    mean = json.loads((groups / "a.json").read_text())["test"]["ne"]["mean"]
    assert better["ne"]["a"] == pytest.approx(mean, rel=1e-12)  # float64 sums in another order

    itself = in_process("compare", groups / "a", groups / "a").out
    assert itself.splitlines()[-1] == "the scores are identical"
    text = in_process("compare", groups / "a", groups / "same").out
    assert "(3 seeds)" in text
    assert "rows and the seeds" in text
    one = in_process("compare", groups / "a" / "seed-0", groups / "same" / "seed-10").out
    assert "Errors and p count the rows only" in one


def test_runs_shows_the_seeds_of_a_setting_as_one_row(groups: Path):
    text = in_process("runs", groups).out
    rows = [line for line in text.splitlines() if "(3 seeds)" in line]
    assert sorted(row.split()[0] for row in rows) == ["a", "poor", "same"]
    assert "seed-0" not in text
    mean = json.loads((groups / "a.json").read_text())["test"]["ne"]["mean"]
    assert f"{mean:.4f} ±" in next(row for row in rows if row.startswith("a "))
    listed = in_process("runs", groups, "--json").json()
    assert len(listed) == 9
    assert {run["group"] for run in listed} == {str(groups / name) for name in ("a", "poor", "same")}
    assert "seed-1" in in_process("runs", groups / "a").out
    assert "1 run in" in in_process("runs", groups / "a" / "seed-1").out


def test_an_interrupted_group_is_resumed_to_the_same_results(groups: Path, tmp_path: Path):
    process = start(
        *(*TRAIN, "--seeds", 3, "--sparse-lr", 0.05, "--qr-lr", 0.05, "--run-dir", tmp_path / "cut", "--json"),
        cwd=tmp_path,
    )
    second = tmp_path / "cut" / "seed-1" / "run.toml"
    deadline = time.monotonic() + 200
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert f"train --resume {tmp_path / 'cut'}" in " ".join(err.split())
    resumed = in_process("train", "--resume", tmp_path / "cut", "--json").json()
    whole = json.loads((groups / "a.json").read_text())
    assert [run["test"] for run in resumed["runs"]] == [run["test"] for run in whole["runs"]]
    assert resumed["test"] == whole["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", 1), "--seeds = 1 must be at least 2"),
        (("--seeds", "many"), "--seeds = 'many'"),
        (("--seeds", 2, "--seed", (1 << 63) - 1), "the largest seed is"),
        (("--seeds", 2, "--print-plan"), "--print-plan and several seeds contradict"),
        (("--seeds", 2, "--dataset", "criteo", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
):
    monkeypatch.chdir(tmp_path)
    done = in_process(*TRAIN, *arguments, "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert not (tmp_path / "run").exists()
