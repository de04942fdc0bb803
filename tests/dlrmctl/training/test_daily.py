"""`dlrmctl daily`: each day is scored by the model of the day before, to which new ids are rare values."""

import json
from pathlib import Path

import pytest

from tests.dlrmctl.commands import in_process

MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64", "--epochs", "1"]
DAYS = ("0", "1", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of three days, "frozen" of the second one with the ids of the first, and the report."""
    place = tmp_path_factory.mktemp("daily")
    rows = ["--rows", "3000", "--files", "3", "--drift", "0.1"]
    assert in_process("data", "synthesize", *rows, "-o", place / "{n}.txt").status == 0
    for day in DAYS:
        more = ["--extend", place / str(int(day) - 1)] if day != "0" else ["--keep-rare"]
        assert in_process("prepare", "criteo", place / f"{day}.txt", *more, "-o", place / day).status == 0
    fixed = ["--vocabulary-from", place / "0", "-o", place / "frozen"]
    assert in_process("prepare", "criteo", place / "1.txt", *fixed).status == 0
    stores = [place / day for day in DAYS]
    done = in_process(
        "daily", *stores, "-o", place / "week", "--plot", place / "week.svg", *MODEL, "--evaluations", "1"
    )
    assert done.status == 0, done.err
    assert "NE, the day before" in done.out
    assert (place / "week.svg").stat().st_size > 1000
    return place


def test_the_report_has_the_scores_of_both_models(place: Path):
    report = json.loads((place / "week" / "daily.json").read_text())["days"]
    assert [day["day"] for day in report] == [*DAYS]
    assert [sorted(day) for day in report[1:]] == [["before", "day", "examples", "first", "new_ids", "test"]] * 2
    assert report[1]["new_ids"] > 100
    assert report[1]["before"] == report[1]["first"]
    assert report[2]["before"] != report[2]["first"]


def test_new_ids_are_rare_values_to_an_earlier_model(place: Path):
    scored = [
        in_process("evaluate", place / "week" / "0", "--data", place / store, "--split", "train", "--json")
        for store in ("1", "frozen")
    ]
    assert "new since the run, and scored as rare values" in scored[0].err
    extended, frozen = (done.json()["train"] for done in scored)
    assert extended == frozen
    assert json.loads((place / "week" / "daily.json").read_text())["days"][1]["before"]["ne"] == frozen["ne"]


def test_finished_days_are_not_repeated(place: Path):
    before = (place / "week" / "daily.json").read_text()
    done = in_process("daily", *(place / day for day in DAYS), "-o", place / "week", *MODEL)
    assert (done.status, (place / "week" / "daily.json").read_text()) == (0, before)
    assert "step" not in done.err


def test_stores_that_do_not_follow_each_other_are_one_line(place: Path, tmp_path: Path):
    done = in_process("daily", place / "1", place / "0", "-o", tmp_path / "week")
    assert (done.status, "0 does not follow" in done.err) == (2, True), done.err
    done = in_process("daily", place / "0", "-o", tmp_path / "week")
    assert (done.status, "at least two stores" in done.err) == (2, True), done.err
