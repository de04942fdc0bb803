"""`dlrmctl data synthesize` writes files whose best possible score is known."""

import resource
from pathlib import Path

import pytest

from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.datasets.open import open_source
from dlrmctl.settings.config import SYNTHETIC_SIZES, resolve
from tests.dlrmctl.commands import in_process, start_anew

COMMAND = ("data", "synthesize")


def test_files_splits_and_the_whole_have_their_scores(tmp_path: Path):
    out = tmp_path / "day_{n}.tsv"
    done = in_process(*COMMAND, "--rows", "20k", "-o", out, "--files", "3", "--seed", "5", "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert [file["rows"] for file in result["files"]] == [6666, 6667, 6667]
    for n, file in enumerate(result["files"]):
        text = (tmp_path / f"day_{n}.tsv").read_bytes()
        lines = text.splitlines()
        assert (len(lines), len(text)) == (file["rows"], file["bytes"])
        assert file["label_rate"] == sum(line[:1] == b"1" for line in lines) / len(lines)
        assert {line.count(b"\t") for line in lines} == {39}
    whole = Synthetic(5, 20_000, 1, 1).bayes("train")
    assert (result["bayes_ne"], result["bayes_auc"]) == (whole.ne, whole.auc)
    by_order, by_file = result["splits"]["order"], result["splits"]["last-file"]
    assert [part["rows"] for part in by_order.values()] == [17_142, 1429, 1429]
    assert [part["rows"] for part in by_file.values()] == [13_333, 3333, 3334]
    losses = [part["rows"] * part["bayes_log_loss"] for part in by_order.values()]
    assert sum(losses) / 20_000 == pytest.approx(whole.log_loss)


def test_what_the_splits_are_scored_on_is_what_prepare_makes_of_them(tmp_path: Path):
    done = in_process(*COMMAND, "--rows", "3001", "-o", tmp_path / "day_{n}.tsv", "--rows-per-file", "2k", "--json")
    assert done.status == 0, done.err
    files = sorted(tmp_path.glob("day_*.tsv"))
    for how, splits in done.json()["splits"].items():
        prepared = in_process("prepare", "criteo", *files, "-o", tmp_path / how, "--split", how, "--json")
        assert prepared.status == 0, prepared.err
        for split, scores in splits.items():
            found = prepared.json()["splits"][split]
            assert (found["examples"], found["label_rate"]) == (scores["rows"], pytest.approx(scores["label_rate"]))


def test_for_people(tmp_path: Path):
    done = in_process(*COMMAND, "--rows", "1_000", "-o", tmp_path / "day.tsv.gz", "--size", "kaggle")
    assert done.status == 0, done.err
    assert "1,000 rows" in done.out
    assert "test, --split order" in done.out


def test_sizes_are_settings_of_the_synthetic_data():
    assert tuple(SIZES) == SYNTHETIC_SIZES
    for size in SYNTHETIC_SIZES:
        settings = resolve({}, {"dataset": "synthetic", "synthetic_size": size, "synthetic_rows": "1000"})
        rows = [feature.rows - 2 for feature in open_source(settings.data).schema.sparse]
        assert rows == list(SIZES[size])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "many"], "--rows = 'many' is not a whole number"),
        (["--rows", "xM"], "--rows = 'xM' is not a whole number"),
        (["--rows", "1.5"], "--rows = '1.5' is not a whole number"),
        (["--rows", "0k"], "--rows = 0k must be at least 1"),
        (["--rows", str(1 << 63)], f"--rows = {1 << 63} must be at most 10,000,000,000"),
        (["--rows", "9G", "--size", "kaggle"], "9,000,000,000 rows take about "),  # more than this disk has
        (["--size", "huge"], "--size = 'huge' must be one of small, medium, kaggle"),
        (["--files", "2", "--rows-per-file", "5"], "--files and --rows-per-file contradict"),
        (["--rows", "10", "--files", "11"], "10 rows in 11 files: at most 10 files are written"),
        (["--files", "2"], "2 files need a name with {n}"),
        (["-o", "h_{x}.tsv"], "unknown field {x}"),
        (["-o", "h_{n}_{}.tsv", "--files", "2"], "unknown field {}"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str):
    done = in_process(*COMMAND, "-o", tmp_path / "day.tsv", *arguments)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_existing_files_stay_unless_forced(tmp_path: Path):
    path = tmp_path / "day.tsv"
    path.write_text("mine")
    done = in_process(*COMMAND, "-o", path, "--rows", "10")
    assert (done.status, path.read_text()) == (2, "mine")
    assert "already exists" in done.err
    assert "--force" in done.err
    assert in_process(*COMMAND, "-o", path, "--rows", "10", "--force").status == 0
    assert len(path.read_text().splitlines()) == 10
    done = in_process(*COMMAND, "-o", tmp_path / "no" / "day.tsv")
    assert done.status == 2
    assert "no such directory" in done.err


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path: Path):
    # A limit on the size of files fails a write like a full disk does.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        started = start_anew(*COMMAND, "--rows", "100k", "-o", "day.tsv", cwd=tmp_path)  # so that it has the limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    _, err = started.communicate()
    assert started.returncode == 2, err
    assert "error: day.tsv: cannot write: file too large" in err
    assert not list(tmp_path.iterdir())
