"""A store gives back what was written, and says so when it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.layout import narrowest
from data.reader import Reader
from data.schema import Schema, SparseFeature
from data.source import SPLITS, Block
from data.store import Store
from data.synthetic import Synthetic
from data.writer import StoreWriter, write_store
from tests.data.sources import Counting


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_store(Counting(25), tmp_path / "store")
    return tmp_path / "store"


def edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("multi_hot", [False, True])
def test_a_store_gives_the_batches_of_its_source(tmp_path: Path, multi_hot: bool) -> None:
    source = Counting(95, block_rows=10, multi_hot=multi_hot)
    write_store(source, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.schema == source.schema
    for split in SPLITS:
        assert store.num_examples(split) == 95
        theirs = Reader(source, split, batch_size=12, drop_last=False).batches(1)
        for ours, other in zip(Reader(store, split, batch_size=12, drop_last=False).batches(1), theirs, strict=True):
            assert torch.equal(ours.ids, other.ids)  # ids above 2**24 among them
            assert torch.equal(ours.dense_BI, other.dense_BI)
            assert torch.equal(ours.labels_B, other.labels_B)
            assert ours.lengths_FB is other.lengths_FB is None or torch.equal(ours.lengths_FB, other.lengths_FB)


def test_ids_lie_in_the_narrowest_type(path: Path) -> None:
    block = Store(path).read_block("train", 0)
    assert [column.dtype for column in block.ids_F] == [np.uint8, np.uint32]
    assert [narrowest(n).itemsize for n in (255, 256, 65_535, 65_536, 2**32 - 1, 2**32)] == [1, 2, 2, 4, 4, 8]


def test_equal_data_has_an_equal_fingerprint(tmp_path: Path) -> None:
    small = {"num_train": 9000, "num_validation": 10, "num_test": 10, "cardinalities": (5, 300)}
    write_store(Synthetic(1, **small), tmp_path / "a")
    write_store(Synthetic(1, **small), tmp_path / "b", {"note": "made elsewhere"})
    write_store(Synthetic(2, **small), tmp_path / "c")
    a, b, c = (Store(tmp_path / name).fingerprint() for name in "abc")
    assert a == b != c


def test_a_damaged_block_is_found_when_it_is_first_read(path: Path) -> None:
    content = bytearray((path / "validation.bin").read_bytes())
    content[-9] ^= 1
    (path / "validation.bin").write_bytes(content)
    store = Store(path)
    store.read_block("validation", 1)
    with pytest.raises(DataError, match=r"validation\.bin, block 2: changed since it was prepared") as caught:
        list(Reader(store, "validation", batch_size=5).batches(0))
    assert caught.value.hint == "prepare it again from the raw files"
    Store(path, verify=False).read_block("validation", 2)


@pytest.mark.parametrize("verify", [True, False])
def test_a_whole_split_can_be_checked_at_once(path: Path, verify: bool) -> None:
    content = bytearray((path / "validation.bin").read_bytes())
    content[-9] ^= 1
    (path / "validation.bin").write_bytes(content)
    store = Store(path, verify=verify)
    store.verify("train")
    store.verify("test")
    with pytest.raises(DataError, match=r"validation\.bin, block 2: changed since it was prepared") as caught:
        store.verify("validation")
    assert caught.value.hint == "prepare it again from the raw files"
    with pytest.raises(DataError, match="there is no split 'dev'"):
        store.verify("dev")


def test_a_block_is_compared_once(path: Path) -> None:
    store = Store(path)
    store.verify("test")
    with (path / "test.bin").open("r+b") as file:
        file.write(b"\xff" * 8)
    store.read_block("test", 0)
    store.verify("test")
    with pytest.raises(DataError, match=r"test\.bin, block 0"):
        Store(path).verify("test")


def test_a_copied_source_keeps_the_meaning_of_its_ids(path: Path, tmp_path: Path) -> None:
    assert Store(path).vocabulary_fingerprint() == Counting(7).vocabulary_fingerprint()
    write_store(Store(path), tmp_path / "again")
    assert Store(tmp_path / "again").vocabulary_fingerprint() == Counting(7).vocabulary_fingerprint()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with StoreWriter(tmp_path / name, Counting(9).schema) as writer:
            writer.add("train", Counting(9 if name == "a" else 8).read_block("train", 0))
            writer.finish()
    a, b = (Store(tmp_path / name).vocabulary_fingerprint() for name in "ab")
    assert a == Store(tmp_path / "a").vocabulary_fingerprint() != b  # nothing is known: ids mean something here alone


def test_a_file_that_is_cut_short_or_missing_is_named(path: Path) -> None:
    whole = (path / "test.bin").read_bytes()
    (path / "test.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"test\.bin: {len(whole) - 1} bytes, the manifest says {len(whole)}"):
        Store(path)
    (path / "test.bin").unlink()
    with pytest.raises(DataError, match=r"test\.bin: cannot read: no such file"):
        Store(path)


def test_what_is_not_a_store_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such directory"):
        Store(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train\.bin: a file, where a store is a directory"):
        Store(path / "train.bin")
    edit(path, format="dlrmctl-store/9")
    with pytest.raises(DataError, match=r"the format is 'dlrmctl-store/9', this version reads 'dlrmctl-store/1'"):
        Store(path)
    (path / "manifest.json").write_text('{"format": ')
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        Store(path)
    (path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"not the manifest of a store"):
        Store(path)
    (path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json, so not a store"):
        Store(path)


def test_a_block_or_split_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match="has no block 3"):
        Store(path).read_block("train", 3)
    with pytest.raises(DataError, match="there is no split 'dev'"):
        Store(path).read_block("dev", 0)
    with pytest.raises(DataError, match="keeps no vocabulary"):
        Store(path).encoders()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(np.zeros((1, 2)), [np.array([0, 5])], np.zeros(2)), "feature a: id 5 lies outside its 5 rows"),
        (Block(np.zeros((1, 2)), [np.array([-1, 0])], np.zeros(2)), "feature a: id -1 lies outside its 5 rows"),
        (Block(np.zeros((1, 2)), [np.zeros(2, int)], np.array([0, 2])), "a label is neither 0 nor 1"),
        (Block(np.zeros((2, 2)), [np.zeros(2, int)], np.zeros(2)), "a block of 2 examples has dense features"),
        (Block(np.zeros((1, 2)), [np.zeros(3, int)], np.zeros(2)), "feature a: 3 ids where the lengths add up to 2"),
        (Block(np.zeros((1, 9)), [np.zeros(9, int)], np.zeros(9)), "only the last block"),
    ],
)
def test_a_block_that_does_not_fit_the_schema_is_not_written(tmp_path: Path, block: Block, message: str) -> None:
    with StoreWriter(tmp_path, Schema(("x",), (SparseFeature("a", 5),)), block_rows=8) as writer:
        with pytest.raises(DataError, match=message):
            writer.add("train", block)


def test_a_list_longer_than_its_feature_allows_is_not_written(tmp_path: Path) -> None:
    block = Block(np.zeros((1, 1)), [np.zeros(4, int)], np.zeros(1), np.array([[4]]))
    with StoreWriter(tmp_path, Schema(("x",), (SparseFeature("a", 5, 3),))) as writer:
        with pytest.raises(DataError, match="feature a: a list of 4 ids"):
            writer.add("train", block)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.bin").symlink_to("/dev/full")
    writer = StoreWriter(tmp_path, Counting(25).schema, block_rows=10)
    writer.add("train", Counting(25).read_block("train", 0))  # in the buffer of the file
    with pytest.raises(DataError, match=r"train\.bin: cannot write: no space left on device") as caught:
        writer.finish()
    assert "free some space" in str(caught.value.hint)
    assert not (tmp_path / "manifest.json").exists()


def test_schemas_survive_json_and_refuse_nonsense() -> None:
    schema = Counting(5, multi_hot=True).schema
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    with pytest.raises(DataError, match="the name 'a' stands for two columns"):
        Schema(("a",), (SparseFeature("a", 3),))
    for wrong in ({"rows": 0}, {"rows": 3, "max_ids": 0}, {"name": "", "rows": 3}):
        with pytest.raises(DataError, match="a"):
            SparseFeature(**{"name": "a", **wrong})  # type: ignore[arg-type]
