"""A manifest that is not as it was written is refused in one line, whatever was done to it."""

import copy
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.sealed import write_sealed
from dlrmctl.data.source import Block
from dlrmctl.data.store.layout import block_bytes, pack
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from tests.data.criteo_files import make_rows, prepare_criteo, write
from tests.data.sources import Counting

Manifest = dict[str, Any]


@pytest.fixture(params=[False, True], ids=["one-hot", "multi-hot"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_store(Counting(25, multi_hot=request.param), tmp_path / "store")
    return tmp_path / "store"


def read(path: Path) -> Manifest:
    manifest: Manifest = json.loads((path / "manifest.json").read_text())
    return manifest


def message_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Store(path)
    assert caught.value.hint == "prepare it again from the raw files"
    assert "\n" not in caught.value.message
    start = f"{path / 'manifest.json'}: "
    assert caught.value.message.startswith(start)
    return caught.value.message.removeprefix(start)


EDITS: list[tuple[Callable[[Manifest], object], str]] = [
    (lambda m: m.update(block_rows=0), "block_rows = 0 must be at least 1"),
    (lambda m: m.update(block_rows=-5), "block_rows = -5 must be at least 1"),
    (lambda m: m.update(block_rows=1 << 62), f"block_rows = {1 << 62} must be at most 16777216"),
    (lambda m: m.update(block_rows=10.0), "block_rows = 10.0 must be a whole number"),
    (lambda m: m.update(block_rows=True), "block_rows = True must be a whole number"),
    (lambda m: m["splits"]["train"].update(examples=42), "splits.train.bytes = "),
    (lambda m: m["splits"]["train"].update(examples=-1), "splits.train.examples = -1 must be at least 0"),
    (lambda m: m["splits"]["train"].update(bytes=8), "splits.train.bytes = 8, but 25 examples of the schema take "),
    (lambda m: m["splits"]["train"].update(table_crc32=None), "splits.train.table_crc32 = None must be a whole number"),
    (lambda m: m["splits"]["train"].update(table="../x"), "splits.train.table = '../x' must be 'train.blocks'"),
    (lambda m: m["splits"]["train"].update(file="../x"), "splits.train.file = '../x' must be 'train.bin'"),
    (lambda m: m["splits"].pop("validation"), "splits.validation is missing"),
    (lambda m: m["schema"]["dense"].pop(), "splits.train.bytes = "),
    (lambda m: m["schema"]["sparse"].pop(), "splits.train.bytes = "),
    (lambda m: m["schema"]["sparse"][0].update(rows="7"), "not a schema: TypeError(\"'7' is not of type int\")"),
    (lambda m: m["schema"]["sparse"][0].update(rows=0), "sparse feature small: 0 rows must be at least 1"),
    (lambda m: m["schema"]["sparse"][0].update(name="a\nb", rows=0), "sparse feature a b: 0 rows must be"),
    (lambda m: m["schema"].update(dense="up"), "not a schema: TypeError(\"'up' is not of type list\")"),
    (lambda m: m["schema"].update(label="x" * 1000 + "'" * 1000, dense=[0]), "not a schema"),
    # Shapes stay right, and only the checksum knows.
    (lambda m: m["splits"]["train"].update(table_crc32=7), "its content does not match its checksum, crc32 = "),
    (lambda m: m.update(block_rows=20), "splits.train.bytes = 312, but 25 examples of the schema take 280"),
    (lambda m: m["schema"]["sparse"][0].update(rows=3), "its content does not match its checksum, crc32 = "),
    (lambda m: m["schema"]["sparse"].reverse(), "its content does not match its checksum"),
    (lambda m: m.update(note="mine"), "its content does not match its checksum"),
    (lambda m: m.update(crc32=7), "its content does not match its checksum, crc32 = 7"),
    (lambda m: m.pop("crc32"), "crc32 is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=[message for _, message in EDITS])
@pytest.mark.parametrize("path", [False], indirect=True, ids=["one-hot"])
def test_an_edit_is_named(path: Path, edit: Callable[[Manifest], object], message: str) -> None:
    manifest = read(path)
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    told = message_of(path)
    assert told.startswith("edited or damaged: " + message)
    assert len(told) < 250


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything stands inside plain values."""
    if at:
        yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


def test_nothing_in_a_manifest_can_be_changed_or_left_out(path: Path) -> None:
    manifest = read(path)
    for *outer, last in places(manifest):
        for new in (None, True, -1, 0, 10**30, 1e999, "x\ny", [], {}, "left out"):
            changed = copy.deepcopy(manifest)
            inner = changed
            for key in outer:
                inner = inner[key]
            if inner[last] == new and type(inner[last]) is type(new):
                continue
            if new == "left out":
                del inner[last]
            else:
                inner[last] = new
            (path / "manifest.json").write_text(json.dumps(changed))
            if outer or last != "format":
                assert message_of(path).startswith("edited or damaged: ")
            else:
                with pytest.raises(DataError, match=r"the format is|not the manifest of a store"):
                    Store(path)


def test_a_damaged_byte_is_found(path: Path) -> None:
    content = (path / "manifest.json").read_bytes()
    for at in range(0, len(content), 7):
        for flip in (1, 128):
            damaged = bytearray(content)
            damaged[at] ^= flip
            (path / "manifest.json").write_bytes(damaged)
            with pytest.raises(DataError, match=r"manifest\.json(: | is not)"):
                Store(path)
    for damage in (content[:-20], bytes(len(content)), b"[" * 100_000, b""):
        (path / "manifest.json").write_bytes(damage)
        assert message_of(path).startswith("damaged: ")


def test_order_and_spaces_of_a_manifest_do_not_count(path: Path) -> None:
    before = Store(path).fingerprint()
    manifest = read(path)
    (path / "manifest.json").write_text(json.dumps(dict(reversed(manifest.items())), indent=7))
    assert Store(path).fingerprint() == before


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare_criteo([write(tmp_path / "train.txt", make_rows(400))], tmp_path / "prepared")
    return tmp_path / "prepared"


def test_the_manifest_of_a_preparation_is_sealed_too(prepared: Path) -> None:
    manifest = read(prepared)
    manifest["ids"]["columns"][0]["rows"] += 1
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    assert "does not match its checksum" in message_of(prepared)
    for name, inner, message in [
        ("input", 7, "input = 7 must be a string"),
        ("dense_transform", {}, "dense_transform.type is missing"),
        ("table_schema", {}, "not the schema of a table: KeyError('dense')"),
        ("report", [], "report = [] must be an object"),
        ("negative_sampling", {"split": "train", "rate": 1.5}, "negative_sampling.rate = 1.5 must be above 0"),
        ("ids", {**manifest["ids"], "min_count": "2"}, "ids.min_count = '2' must be a whole number"),
        ("ids", {**manifest["ids"], "columns": [3]}, "ids.columns[0] = 3 must be an object"),
        ("ids", {**manifest["ids"], "missing_row": 1}, "ids.missing_row = 1 must be 0"),
    ]:
        (prepared / "manifest.json").write_text(json.dumps({**manifest, name: inner}))
        assert message_of(prepared).startswith(f"edited or damaged: {message}")


def test_what_is_read_is_all_that_was_written(prepared: Path, path: Path) -> None:
    for store in (prepared, path):
        content = read(store)
        again = {"format": "dlrmctl-store/3", **Store(store).manifest.to_dict(), "crc32": content["crc32"]}
        assert json.dumps(again) == json.dumps(content)


def test_what_a_later_version_added_is_ignored(prepared: Path) -> None:
    before = Store(prepared).manifest
    (prepared / "manifest.json").unlink()
    write_sealed(prepared / "manifest.json", "dlrmctl-store/3", {**before.to_dict(), "note": "mine"})
    assert Store(prepared).manifest == before


def test_the_first_stores_of_this_format_open(prepared: Path) -> None:
    before = Store(prepared)
    content = before.manifest.to_dict()
    del content["input"], content["limit"], content["ids"]["max_rows_per_table"], content["ids"]["vocabulary_from"]
    for column in content["ids"]["columns"]:
        del column["counts"]
    write_sealed(prepared / "manifest.json", "dlrmctl-store/3", content)
    store = Store(prepared)
    assert store.features.input == "criteo"
    assert store.fingerprint() == before.fingerprint()
    assert store.vocabulary_fingerprint() == before.vocabulary_fingerprint()
    assert store.features.counts("cat_1") is None


def test_the_bytes_of_a_manifest_are_those_of_all_stores_of_its_format(prepared: Path, tmp_path: Path) -> None:
    write_store(Synthetic(1, 900, 10, 10, cardinalities=(5, 300)), tmp_path / "generated")
    digests = [sha256((store / "manifest.json").read_bytes()) for store in (prepared, tmp_path / "generated")]
    assert [digest.hexdigest()[:16] for digest in digests] == ["fc9a0d9e94366086", "fbb3183bde0aa091"]


@pytest.mark.parametrize("count", [1, 9, 10])
def test_the_bytes_of_a_block_are_known_before_it_is_encoded(count: int) -> None:
    for source in (Counting(count), Counting(count, multi_hot=True)):
        low, high = block_bytes(source.schema, count)
        assert low <= len(pack(source.schema, source.read_block("train", 0))) <= high
        assert (low == high) is source.schema.one_hot
    block = source.read_block("train", 0)
    assert block.lengths_FN is not None
    for length, expected in ((0, low), (3, high)):
        block.lengths_FN[2] = length
        lists = np.zeros(count * length, dtype=np.int64)
        full = Block(block.dense_IN, [*block.ids_F[:2], lists], block.labels_N, block.lengths_FN)
        assert len(pack(source.schema, full)) == expected
