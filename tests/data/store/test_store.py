"""A store gives back what was written, and says so when it cannot."""

import json
import os
import shutil
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrmctl.data.errors import DataError
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import RESERVED_ROWS, Schema, SparseFeature
from dlrmctl.data.source import SPLITS, Block
from dlrmctl.data.store.layout import block_bytes, narrowest
from dlrmctl.data.store.manifest import SplitEntry, read_manifest, write_manifest
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import StoreWriter, write_store
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.synthetic import Synthetic
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


def test_a_row_of_criteo_takes_less_than_100_bytes() -> None:
    sparse = tuple(SparseFeature(f"cat_{f}", ids + RESERVED_ROWS) for f, ids in enumerate(SIZES["kaggle"]))
    schema = Schema(tuple(f"int_{i}" for i in range(13)), sparse)
    # 13 * 2 bytes dense, 1 of the label; ids: 8 columns of 1 byte, 10 of 2, 8 of 4.
    assert block_bytes(schema, 65_536) == ((26 + 1 + 8 * 1 + 10 * 2 + 8 * 4) * 65_536,) * 2


def test_equal_data_has_an_equal_fingerprint(tmp_path: Path) -> None:
    small = {"num_train": 9000, "num_validation": 10, "num_test": 10, "cardinalities": (5, 300)}
    write_store(Synthetic(1, **small), tmp_path / "a")
    write_store(Synthetic(1, **small), tmp_path / "b")
    write_store(Synthetic(2, **small), tmp_path / "c")
    write_manifest(tmp_path / "b", replace(read_manifest(tmp_path / "b"), vocabulary_fingerprint="made elsewhere"))
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


def test_a_block_is_compared_once_and_again_when_its_file_was_written_to(path: Path) -> None:
    store = Store(path)
    store.verify("test")
    before = (path / "test.bin").stat()
    with (path / "test.bin").open("r+b") as file:
        file.write(b"\xff" * 8)
    os.utime(path / "test.bin", ns=(before.st_atime_ns, before.st_mtime_ns))  # as if it was never verified
    store.read_block("test", 0)
    store.verify("test")
    os.utime(path / "test.bin")
    for check in (
        lambda: store.read_block("test", 0),
        lambda: store.verify("test"),
        lambda: Store(path).verify("test"),
    ):
        with pytest.raises(DataError, match=r"test\.bin, block 0: changed since it was prepared"):
            check()
    store.read_block("test", 1)


def test_a_file_that_is_cut_short_while_it_is_read_is_said_in_one_line(path: Path) -> None:
    store = Store(path)
    store.verify("train")
    whole = (path / "train.bin").stat().st_size
    os.truncate(path / "train.bin", whole - 1)
    store.read_block("train", 1)
    with pytest.raises(DataError, match=r"train\.bin, block 2: cut short") as caught:
        list(Reader(store, "train", batch_size=5).batches(0))
    assert caught.value.hint == "prepare it again from the raw files"


def test_files_that_stand_in_each_others_place_are_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_store(Synthetic(seed, 100, 100, 100, cardinalities=(5, 300)), tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    shutil.copy(b / "train.blocks", a)
    with pytest.raises(DataError, match=r"train\.blocks: its content does not match its checksum in the manifest, \d+"):
        Store(a)
    shutil.copy(b / "manifest.json", a)
    with pytest.raises(DataError, match=r"validation\.blocks: its content does not match"):
        Store(a)
    for split in ("validation", "test"):
        shutil.copy(b / f"{split}.blocks", a)
    with pytest.raises(DataError, match=r"train\.bin, block 0: changed since it was prepared"):
        Store(a).read_block("train", 0)  # no checksum of the tables tells that the blocks are others
    (b / "validation.bin").rename(b / "other")
    (b / "test.bin").rename(b / "validation.bin")
    (b / "other").rename(b / "test.bin")
    with pytest.raises(DataError, match=r"validation\.bin, block 0: changed since it was prepared"):
        Store(b).verify("validation")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [  # of a block of 5 examples with lists: columns of 16 (dense), 8 (labels), 8 and 24 (ids), 8 and 8 bytes (lists)
        (32, 2, "a label is neither 0 nor 1"),
        (40, 7, "feature small: id 7 is outside its 7 rows"),
        (72, 4, "feature list: a list of 4 ids"),
        (72, 200, "its columns take more than its 88 bytes"),
        (80, 3, "feature list: id 3 is outside its 3 rows"),
    ],
)
def test_a_block_that_does_not_fit_the_schema_is_refused_though_its_checksums_fit(
    tmp_path: Path, at: int, value: int, message: str
) -> None:
    path = tmp_path / "store"
    write_store(Counting(5, multi_hot=True), path)
    content = bytearray((path / "train.bin").read_bytes())
    content[at] = value
    (path / "train.bin").write_bytes(content)
    table = (path / "train.blocks").read_bytes()[:8] + zlib.crc32(content).to_bytes(4, "little")
    (path / "train.blocks").write_bytes(table)
    manifest = read_manifest(path)
    entry = replace(manifest.splits["train"], table_crc32=zlib.crc32(table))
    write_manifest(path, replace(manifest, splits={**manifest.splits, "train": entry}))
    with pytest.raises(DataError, match=rf"train\.bin, block 0: {message}"):
        Store(path).read_block("train", 0)


@pytest.mark.parametrize("name", ["train.bin", "train.blocks"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(DataError, match=f"{name} is not a file"):
        Store(path)


def test_a_table_of_blocks_that_is_damaged_missing_or_cut_short_is_refused(path: Path) -> None:
    table = path / "train.blocks"
    content = table.read_bytes()
    for at in range(len(content)):
        table.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with pytest.raises(DataError, match=r"train\.blocks: its content does not match its checksum") as caught:
            Store(path)
        assert caught.value.hint == "prepare it again from the raw files"
    table.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"train\.blocks: 35 bytes, 3 blocks take 36"):
        Store(path)
    table.unlink()
    with pytest.raises(DataError, match=r"train\.blocks: cannot read: no such file"):
        Store(path)


def test_a_writer_goes_on_where_another_one_was_killed(tmp_path: Path) -> None:
    source = Counting(95, multi_hot=True)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_store(source, whole)
    parts.mkdir()
    state: str | None = None
    left = [(split, index) for split in SPLITS for index in range(10)]
    while left:
        writer = StoreWriter(parts, source.schema, block_rows=10, state=None if state is None else json.loads(state))
        for split, index in left[:7]:
            writer.add(split, source.read_block(split, index))
        writer.sync()
        state, left = json.dumps(writer.state()), left[7:]
        assert writer.bytes_written == sum((parts / f"{split}.bin").stat().st_size for split in SPLITS)
        if left:
            writer.add(left[0][0], Counting(10, multi_hot=True).read_block(left[0][0], 0))  # never said to be written
            writer.close()
    writer.finish(vocabulary_fingerprint=source.vocabulary_fingerprint())
    for file in whole.iterdir():
        assert (parts / file.name).read_bytes() == file.read_bytes()
    assert len(list(parts.iterdir())) == len(list(whole.iterdir()))


def test_a_writer_does_not_go_on_without_what_was_written(tmp_path: Path) -> None:
    source = Counting(25)
    with StoreWriter(tmp_path, source.schema, block_rows=10) as writer:
        writer.add("train", source.read_block("train", 0))
    os.truncate(tmp_path / "train.bin", 5)
    with pytest.raises(DataError, match=r"train\.bin: 5 bytes, but \d+ were written") as caught:
        StoreWriter(tmp_path, source.schema, block_rows=10, state=writer.state())
    assert caught.value.hint == "start over"


def test_opening_a_store_of_a_terabyte_is_quick_and_small(tmp_path: Path) -> None:
    schema = Schema(tuple(f"int_{i}" for i in range(13)), tuple(SparseFeature(f"cat_{f}", 10**f) for f in range(8)))
    num_blocks, block_rows = 65_536, 65_536
    size = block_bytes(schema, block_rows)[0]
    with StoreWriter(tmp_path, schema, block_rows=block_rows) as writer:
        writer.finish()
    records = np.zeros(num_blocks, dtype=[("bytes", "<u8"), ("crc32", "<u4")])
    records["bytes"], records["crc32"] = size, np.arange(num_blocks)
    (tmp_path / "train.blocks").write_bytes(records.tobytes())
    os.truncate(tmp_path / "train.bin", num_blocks * size)  # a hole: nothing of it lies on the disk
    manifest = read_manifest(tmp_path)
    train = SplitEntry(num_blocks * block_rows, num_blocks * size, zlib.crc32(records.tobytes()))
    write_manifest(tmp_path, replace(manifest, splits={**manifest.splits, "train": train}))
    tracemalloc.start()
    started = time.process_time()
    store = Store(tmp_path)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.num_examples("train") == 2**32
    assert seconds < 2
    assert peak < 10e6
    with pytest.raises(DataError, match=r"train\.bin, block 65535: changed since it was prepared"):
        store.read_block("train", num_blocks - 1)


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
    assert a == Store(tmp_path / "a").vocabulary_fingerprint() != b  # the ids of this store are its own


def test_a_file_that_is_cut_short_or_missing_is_named(path: Path) -> None:
    whole = (path / "test.bin").read_bytes()
    (path / "test.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"test\.bin: {len(whole) - 1} bytes, the manifest says {len(whole)}"):
        Store(path)
    (path / "test.bin").unlink()
    with pytest.raises(DataError, match=r"test\.bin: cannot read: no such file"):
        Store(path)


def test_what_is_not_a_store_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such directory"):
        Store(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train\.bin is a file, expected a directory"):
        Store(path / "train.bin")
    edit(path, format="dlrmctl-store/9")
    with pytest.raises(DataError, match=r"the format is 'dlrmctl-store/9', this version reads 'dlrmctl-store/3'"):
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
    with pytest.raises(DataError, match="has no vocabulary"):
        Store(path).features.encoders()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(np.zeros((1, 2)), [np.array([0, 5])], np.zeros(2)), "feature a: id 5 is outside its 5 rows"),
        (Block(np.zeros((1, 2)), [np.array([-1, 0])], np.zeros(2)), "feature a: id -1 is outside its 5 rows"),
        (Block(np.zeros((1, 2)), [np.zeros(2, int)], np.array([0, 2])), "a label is neither 0 nor 1"),
        (Block(np.zeros((2, 2)), [np.zeros(2, int)], np.zeros(2)), "a block of 2 examples has dense features"),
        (Block(np.zeros((1, 2)), [np.zeros(3, int)], np.zeros(2)), "feature a: 3 ids, but the lengths add up to 2"),
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
    with pytest.raises(DataError, match="the name 'a' is used for two columns"):
        Schema(("a",), (SparseFeature("a", 3),))
    for wrong in ({"rows": 0}, {"rows": 3, "max_ids": 0}, {"name": "", "rows": 3}):
        with pytest.raises(DataError, match="a"):
            SparseFeature(**{"name": "a", **wrong})  # type: ignore[arg-type]
