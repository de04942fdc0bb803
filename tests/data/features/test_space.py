"""What scoring raw rows needs is saved without the examples, and refused if it is damaged."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.new_rows import read_new_rows
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from tests.data.criteo_files import make_rows, write

SCHEMA = {"label": "y", "dense": ["age"], "sparse": ["user", "tags"], "columns": {"tags": {"max_ids": 3}}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    raw = write(tmp_path / "train.txt", make_rows(150))
    prepare(CriteoInput([raw]), tmp_path / "store", PrepareOptions(sample_negatives=0.5, min_count=1))
    return Store(tmp_path / "store")


def ids_of(space: FeatureSpace, raw: Path) -> list[list[int]]:
    (piece,) = read_new_rows(CriteoInput([raw]), space.encoders(), space.schema)
    return [ids_N.tolist() for ids_N in piece.block.ids_F]


def same(one: FeatureSpace, other: FeatureSpace) -> bool:
    """All but the place of the files."""
    return (one.schema, one.input, one.dense_transform, one.columns, one.logit_offset()) == (
        other.schema,
        other.input,
        other.dense_transform,
        other.columns,
        other.logit_offset(),
    ) and one.vocabulary_fingerprint() == other.vocabulary_fingerprint()


@pytest.mark.parametrize("links", [True, False])
def test_raw_rows_have_the_same_ids_when_the_store_is_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    raw = write(tmp_path / "new.txt", make_rows(40, seed=7))
    before, counts = ids_of(store.features, raw), store.features.counts("cat_3")

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not links:  # as between two file systems
        monkeypatch.setattr(os, "link", no_link)
    store.features.save(tmp_path / "run" / "features")
    file = "vocabulary/cat_3.u4"
    assert (tmp_path / "run" / "features" / file).stat().st_nlink == (2 if links else 1)
    fingerprint = store.vocabulary_fingerprint()
    shutil.rmtree(store.path)
    (tmp_path / "run").rename(tmp_path / "moved")
    space = FeatureSpace.open(tmp_path / "moved" / "features")
    assert same(space, store.features)
    assert space.vocabulary_fingerprint() == fingerprint
    assert ids_of(space, raw) == before
    assert np.array_equal(space.counts("cat_3"), counts)  # type: ignore[arg-type]
    assert space.input == "criteo"
    assert (space.logit_offset("train"), space.logit_offset("test")) == (0.0, np.log(0.5))
    space.save(tmp_path / "again")
    assert same(FeatureSpace.open(tmp_path / "again"), space)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "moved", "new.txt", "train.txt"]


def test_the_schema_of_tables_is_kept(tmp_path: Path) -> None:
    rows = "".join(f"{n % 2},{n},u{n % 5},{'|'.join('ab'[: n % 3])}\n" for n in range(60))
    (tmp_path / "t.csv").write_text("y,age,user,tags\n" + rows)
    schema = read_schema(SCHEMA, "my.toml")
    prepare(TableInput(schema, [tmp_path / "t.csv"]), tmp_path / "store")
    Store(tmp_path / "store").features.save(tmp_path / "kept")
    space = FeatureSpace.open(tmp_path / "kept")
    assert space.table_schema is not None
    assert space.table_schema.to_dict() == schema.to_dict()
    assert space.dense_transform == TableInput(schema, [tmp_path / "t.csv"]).dense_transform
    (piece,) = read_new_rows(TableInput(space.table_schema, [tmp_path / "t.csv"]), space.encoders(), space.schema)
    assert len(piece.block) == 60


def test_features_without_raw_values_are_kept_too(store: Store, tmp_path: Path) -> None:
    generated = Synthetic(1, 100, 10, 10, cardinalities=(5, 300))
    write_store(generated, tmp_path / "copied")
    for name, source, input in [("a", generated, GENERATED), ("b", Store(tmp_path / "copied"), None)]:
        source.features.save(tmp_path / name)
        space = FeatureSpace.open(tmp_path / name)
        assert same(space, source.features)
        assert space.input == input
        assert space.vocabulary_fingerprint() == generated.vocabulary_fingerprint()
        assert not space.sorted_by_frequency("cat_1")
        assert space.counts("cat_1") is space.encoder("cat_1") is None
        with pytest.raises(DataError, match="has no vocabulary: its rows were not made from raw values"):
            space.encoders()
    assert store.features.sorted_by_frequency("cat_1")


def refused(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        FeatureSpace.open(directory).encoders()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_damage_is_refused_in_one_line(store: Store, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    store.features.save(kept)
    shutil.copytree(kept, tmp_path / "whole")
    shutil.rmtree(kept)
    features = tmp_path / "whole" / "features.json"
    content = features.read_bytes()

    def copy() -> Path:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", kept)
        return kept

    for at in range(0, len(content), 1 + len(content) // 60):
        (copy() / "features.json").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert refused(kept).startswith(f"{kept / 'features.json'}: ")
    (copy() / "features.json").write_bytes(content[:-30])
    assert "features.json: damaged: " in refused(kept)
    (copy() / "features.json").write_text(json.dumps({**json.loads(content), "format": "dlrmctl-features/2"}))
    assert "the format is 'dlrmctl-features/2', this version reads 'dlrmctl-features/1'" in refused(kept)
    (copy() / "features.json").unlink()
    assert refused(kept) == f"{kept}: no features.json, so not features that were kept of a data set"
    (copy() / "vocabulary" / "cat_2.u4").unlink()
    with pytest.raises(DataError, match=r"cat_2\.u4: cannot read: no such file or directory"):
        FeatureSpace.open(kept)
    vocabulary = copy() / "vocabulary" / "cat_2.u4"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cat_2\.u4: changed since it was prepared: \d+ bytes, not \d+"):
        FeatureSpace.open(kept)
    vocabulary = copy() / "vocabulary" / "cat_2.u4"
    vocabulary.write_bytes(bytes(vocabulary.stat().st_size))
    space = FeatureSpace.open(kept)  # of the right size: found when it is loaded
    with pytest.raises(DataError, match=r"cat_2\.u4: changed since it was prepared"):
        space.encoders()
    assert space.encoder("cat_1") is not None


def test_what_cannot_be_saved_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    store.features.save(tmp_path / "kept")
    with pytest.raises(DataError, match="kept already exists"):
        store.features.save(tmp_path / "kept")
    os.truncate(store.path / "vocabulary" / "cat_26.u4", 0)
    with pytest.raises(DataError, match=r"cat_26\.u4: changed since it was prepared"):
        store.features.save(tmp_path / "other")
    shutil.rmtree(store.path)
    with pytest.raises(DataError, match=r"cat_1\.u4: cannot read: no such file"):
        store.features.save(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "train.txt"]


def test_features_are_read_without_polars_and_torch() -> None:
    program = (
        "import sys\nfor name in ('polars', 'torch'):\n    sys.modules[name] = None\n"
        "import dlrmctl.data.features.space, dlrmctl.data.store.store, dlrmctl.data.preparation.report\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
