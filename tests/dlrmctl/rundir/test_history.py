"""`dlrmctl runs` and `dlrmctl plot` on trained runs."""

from pathlib import Path

import pytest

from tests.dlrmctl.commands import SMALL, in_process


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("history") / "runs"
    for name, rows, rate in (("good", 20_000, "0.1"), ("poor", 20_000, "0")):
        done = in_process(
            *("train", *SMALL, "--synthetic-rows", rows, "--sparse-lr", rate, "--qr-lr", rate, "--evaluations", 2),
            *("--run-dir", directory / name),
        )
        assert done.status == 0, done.err
    (directory / "poor" / "results.json").unlink()
    with (directory / "poor" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    return directory


def test_runs_are_listed_by_validation_ne_and_unfinished_ones_said(runs: Path):
    listed = in_process("runs", runs.parent, "--json").json()
    assert [Path(run["run"]).name for run in listed] == ["good", "poor"]
    assert listed[0]["validation_ne"] < listed[1]["validation_ne"]
    assert [run["finished"] for run in listed] == [True, False]
    assert [run["tables"] for run in listed] == ["qr + wide", "qr + wide"]
    assert listed[0]["test_ne"] is not None
    assert listed[1]["test_ne"] is None
    table = in_process("runs", runs)
    assert "1 not finished" in table.out
    assert f"{listed[0]['validation_ne']:.4f}" in table.out


@pytest.mark.parametrize("metric", ["ne", "auc"])
def test_learning_curves_name_every_run(runs: Path, tmp_path: Path, metric: str):
    out = tmp_path / "curves.svg"
    done = in_process("plot", runs / "good", runs / "poor", "-o", out, "--metric", metric)
    assert done.status == 0, done.err
    drawing = out.read_text()
    assert drawing.count("<!-- good -->") == 1
    assert drawing.count("<!-- poor -->") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "nowhere"], "nowhere: no such directory"),
        (["plot", "nowhere", "-o", "x.png"], "nowhere: no such run directory"),
        (["plot", "nowhere", "-o", "x.gif"], "must end in .png or .svg"),
        (["plot", "nowhere", "-o", "x.png", "--metric", "aucc"], "--metric = 'aucc' must be one of"),
    ],
)
def test_what_cannot_be_shown_is_one_line(tmp_path: Path, arguments: list[str], message: str):
    done = in_process(*arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1


def test_a_directory_without_runs_is_said(tmp_path: Path):
    done = in_process("runs", tmp_path)
    assert done.status == 2
    assert "contains no run" in done.err
