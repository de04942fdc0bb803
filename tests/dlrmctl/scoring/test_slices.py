"""`dlrmctl evaluate --slice` and `dlrmctl data show` name the values of the user's own table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.store.store import Store
from tests.data.features.test_kept_texts import without_texts
from tests.dlrmctl.commands import SMALL, in_process

CITIES = ["Århus", "\x1b[31mred\nline", "missing", "https://example.com/" + "path/" * 40 + "end", "São Paulo"]
SCHEMA = 'label = "clicked"\nsparse = ["city", "code"]\n'
TRAIN = SMALL[2:]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, the store of it, and a run."""
    directory = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    cities = [CITIES[i] if i < 5 else None for i in rng.choice(6, 3000, p=[0.4, 0.25, 0.15, 0.1, 0.08, 0.02])]
    codes = rng.integers(-2, 3, 3000)
    pl.DataFrame({"clicked": rng.integers(0, 2, 3000), "city": cities, "code": codes}).write_parquet(
        directory / "t.parquet"
    )
    (directory / "my.toml").write_text(SCHEMA)
    for arguments in (
        ["prepare", "--schema", directory / "my.toml", directory / "t.parquet", "-o", directory / "store"],
        ["train", "--dataset", "criteo", "--data", directory / "store", *TRAIN, "--run-dir", directory / "run"],
    ):
        done = in_process(*arguments)
        assert done.status == 0, done.err
    return directory


def evaluated(directory: Path, feature: str) -> tuple[list[dict[str, Any]], str]:
    done = in_process("evaluate", directory / "run", "--slice", feature)
    assert done.status == 0, done.err
    return in_process("evaluate", directory / "run", "--slice", feature, "--json").json()["slices"], done.out


def test_slices_have_the_values_of_the_table(directory: Path):
    slices, out = evaluated(directory, "city")
    assert [part["value"] for part in slices] == [*CITIES, None]
    names = [part["slice"] for part in slices]
    assert names[0] == "Århus"
    assert names[2] == '"missing"'
    assert names[5] == "missing"
    assert len(names[3]) == 40
    assert names[3].startswith("https://example.com/path/")
    assert names[3].endswith("path/end")
    assert "\x1b" not in out
    assert "\\x1b[31mred\\nline" in out
    slices, _ = evaluated(directory, "code")
    assert {part["slice"] for part in slices} == {"-2", "-1", "0", "1", "2"}


def test_data_show_names_the_most_frequent_values(directory: Path):
    out = in_process("data", "show", directory / "store").out
    assert "Århus 4" in out
    assert "\x1b" not in out
    top = in_process("data", "show", directory / "store", "--json").json()["frequencies"][0]["top"]
    assert [row["value"] for row in top] == CITIES[:3]
    assert [row["id"] for row in top] == [2, 3, 4]


def test_a_run_keeps_the_values_of_its_data(directory: Path):
    kept = json.loads((directory / "run" / "features" / "features.json").read_text())["ids"]["columns"]
    assert kept[0]["texts"]["bytes"] > 0
    assert kept[1]["texts"] == {"bytes": 0}
    assert (directory / "run" / "features" / "vocabulary" / "city.texts").is_file()


def test_slices_of_data_that_an_earlier_version_prepared_have_digits(directory: Path, tmp_path: Path):
    arguments = ["prepare", "--schema", directory / "my.toml", directory / "t.parquet", "-o", tmp_path / "store"]
    assert in_process(*arguments).status == 0
    store = without_texts(tmp_path / "store")
    words = Store(store.path).features.encoder("city").values  # type: ignore[union-attr]
    found = in_process("evaluate", directory / "run", "--data", store.path, "--slice", "city", "--json").json()
    assert [part["slice"] for part in found["slices"]][:2] == [f"{word:08x}" for word in words[:2].tolist()]
