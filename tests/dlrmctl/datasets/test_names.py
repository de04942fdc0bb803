"""The name of data: set by `prepare`, kept in the store, and used for the names of its runs."""

import json
import random
from pathlib import Path

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.sealed import write_sealed
from dlrmctl.data.store.manifest import FORMAT, read_manifest
from dlrmctl.data.store.store import Store
from dlrmctl.settings.toml import read_settings, write_settings
from tests.data.criteo_files import make_rows
from tests.dlrmctl.commands import SMALL, in_process

TINY = [*SMALL[2:], "--batch-size", "64", "--shampoo-frequency", "5"]


def _clicks(path: Path) -> None:
    draw = random.Random(0)
    rows = [f"u{draw.randrange(20)},i{draw.randrange(9)},{draw.random():.3f},{draw.randrange(2)}" for _ in range(600)]
    (path / "a.csv").write_text("\n".join(["user,item,price,clicked", *rows, ""]))
    (path / "my.toml").write_text('label = "clicked"\ndense = ["price"]\nsparse = ["user", "item"]\n')


def _without_name(store: Path) -> None:
    """Turns it into a store of an earlier version."""
    content = json.loads((store / "manifest.json").read_text())
    del content["name"], content["crc32"], content["format"]
    write_sealed(store / "manifest.json", FORMAT, content)


@pytest.mark.parametrize(("flags", "name"), [(["--name", "clicks"], "clicks"), ([], "my-store")])
def test_a_run_is_called_by_the_name_of_its_data(
    flags: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    _clicks(tmp_path)
    done = in_process("prepare", "--schema", "my.toml", "a.csv", "-o", "my store", *flags, "--json")
    assert (done.status, done.json()["name"]) == (0, name), done.err
    assert in_process("data", "show", "my store", "--json").json()["name"] == name
    done = in_process("train", "--data", "my store", *TINY, "--json")
    assert done.status == 0, done.err
    run = Path(done.json()["run"])
    assert run.name.startswith(f"{name}-full-")
    assert read_settings(run / "run.toml")["data"]["dataset"] == name
    [listed] = in_process("runs", "--json").json()
    assert listed["dataset"] == name
    assert name in in_process("runs").out
    # All that opens the run's data again takes what it recorded.
    assert in_process("evaluate", run).status == 0
    assert in_process("train", "--resume", run, "--epochs", "2").status == 0
    assert in_process("train", "--config", run / "run.toml", "--max-steps", "1").status == 0
    Path("my store").rename("moved")
    assert in_process("evaluate", run, "--data", "moved").status == 0


def test_a_run_and_a_store_of_before_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("".join("\t".join(row) + "\n" for row in make_rows(800)))
    assert in_process("prepare", "criteo", "train.txt", "-o", "kaggle").status == 0
    assert Store("kaggle").name == "kaggle"
    _without_name(Path("kaggle"))
    assert Store("kaggle").name == "criteo"
    done = in_process("train", "--data", "kaggle", *TINY, "--run-dir", "run")
    assert done.status == 0, done.err
    # Whatever the data is called, the checkpoint knows it by its fingerprint.
    sections = read_settings(Path("run/run.toml"))
    assert sections["data"]["dataset"] == "criteo"
    sections["data"]["dataset"] = "another"
    write_settings(Path("run/run.toml"), sections)
    done = in_process("train", "--resume", "run", "--epochs", "2")
    assert done.status == 0, done.err
    assert read_settings(Path("run/run.toml"))["data"]["dataset"] == "criteo"


def test_a_store_of_a_table_of_before_is_called_by_its_directory(tmp_path: Path):
    _clicks(tmp_path)
    store = tmp_path / "synthetic"
    assert in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "a.csv", "-o", store).status == 0
    assert Store(store).name == "synthetic-data"  # not what generated data is called
    _without_name(store)
    assert Store(store.rename(tmp_path / "moved")).name == "moved"


@pytest.mark.parametrize("name", ["../../etc", ".hidden", "synthetic", "a/b", "", "x" * 65])
def test_a_manifest_with_a_name_that_is_a_path_is_refused(name: str, tmp_path: Path):
    _clicks(tmp_path)
    store = tmp_path / "store"
    assert in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "a.csv", "-o", store).status == 0
    content = json.loads((store / "manifest.json").read_text()) | {"name": name}
    del content["crc32"], content["format"]
    write_sealed(store / "manifest.json", FORMAT, content)
    with pytest.raises(DataError, match="edited or damaged"):
        read_manifest(store)


def test_the_name_of_an_unfinished_preparation_may_change(tmp_path: Path):
    """It decides nothing about the examples."""
    from dlrmctl.data.preparation.options import PrepareOptions

    assert PrepareOptions(name="a").to_dict() == PrepareOptions(name="b").to_dict()
