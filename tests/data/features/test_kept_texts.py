"""The values of rows, as text: the same whatever they came from, in bounded memory, and readable later."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.canonical.texts import canonical_text
from dlrmctl.data.errors import DataError
from dlrmctl.data.features import space, text_writer
from dlrmctl.data.features.kept_texts import END_TYPE
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.features.text_writer import TextWriter
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import RawPiece
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.hashed_texts import MOST_TEXT_BYTES, HashedTexts
from dlrmctl.data.preparation import parsing
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import PartInfo, Parts
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.sealed import write_sealed
from dlrmctl.data.store.manifest import FORMAT, MANIFEST
from dlrmctl.data.store.store import Store
from tests.data.criteo_files import make_rows
from tests.data.criteo_files import write as write_criteo
from tests.data.formats.test_same_values import SPARSE, content, messy, prepared, write

SCHEMA: dict[str, Any] = {"label": "clicked", "sparse": ["v"]}
HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J",
    "two\nlines",
    "tab\tbed\r",
    "\u202egnp.exe",
    "\u2066\u200b",
    "ß" * 3,
    "\x00nul",
    '"quoted"',
    "missing",
    "rare",
    "🜁" * 999_999 + "!",
    "x" * 999_999 + "y",
]


def prepare_values(values: list[Any], directory: Path, name: str = "t.parquet", **how: Any) -> Store:
    """A store with one column of these values."""
    directory.mkdir(exist_ok=True)
    frame = pl.DataFrame({"clicked": [i % 2 for i in range(len(values))], "v": values})
    source = TableInput(read_schema(SCHEMA, "my.toml"), [write(frame, directory / name)], piece_rows=64)
    prepare(source, directory / "store", PrepareOptions(**{"min_count": 1, **how.pop("options", {})}), **how)
    return Store(directory / "store")


def named(features: FeatureSpace, name: str = "v") -> list[str | None]:
    """The values of all rows but the reserved ones."""
    rows = next(feature.rows for feature in features.schema.sparse if feature.name == name)
    return features.values_of(name, range(2, rows))


def without_texts(store: Path) -> Store:
    """The store as an earlier version would have made it."""
    manifest = json.loads((store / MANIFEST).read_text())
    for column in manifest["ids"]["columns"]:
        texts = column.pop("texts", {})
        for file in [texts.get("file"), texts.get("ends", {}).get("file")]:
            if file:
                (store / file).unlink()
    write_sealed(store / MANIFEST, FORMAT, {key: manifest[key] for key in manifest if key not in ("format", "crc32")})
    return Store(store)


@pytest.mark.parametrize("most_waiting", [0, 500, 1 << 20])
def test_texts_are_written_in_the_order_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_waiting: int
) -> None:
    monkeypatch.setattr(text_writer, "_WINDOW", 100)
    rng = np.random.default_rng(0)
    texts = [b"t" * int(length) + str(place).encode() for place, length in enumerate(rng.integers(0, 40, 500))]
    texts = [b"" if place % 5 == 0 else text for place, text in enumerate(texts)]  # integers have none
    writer = TextWriter(tmp_path / "texts", tmp_path / "ends", tmp_path / "spilled", most_waiting)
    for start, stop in ((0, 200), (200, 200), (200, 500)):
        writer.begin(start, stop)
        for _ in range(12):
            places = rng.integers(-2, 500, 150)  # some lie outside, some are asked for twice
            places = places[[place < 0 or texts[place] != b"" for place in places.tolist()]]
            found = HashedTexts.pack(places.view(np.uint64), [texts[place] for place in places.tolist()])
            chosen = writer.wanted(places)
            some = found.pick(chosen)
            writer.add(places[chosen], some.lengths_K, some.content)
        rest = np.array([place for place in range(start, stop) if texts[place]], np.int64)
        some = HashedTexts.pack(rest.view(np.uint64), [texts[place] for place in rest.tolist()]).pick(
            writer.wanted(rest)
        )
        writer.add(rest[writer.wanted(rest)], some.lengths_K, some.content)
        writer.end()
    assert (tmp_path / "texts").read_bytes() == b"".join(texts)
    ends = np.fromfile(tmp_path / "ends", END_TYPE)
    assert ends.tolist() == np.cumsum([len(text) for text in texts]).tolist()
    assert not (tmp_path / "spilled").exists()


@pytest.mark.parametrize("name", ["a.csv", "f.parquet"])
def test_every_row_of_a_messy_table_has_its_value(tmp_path: Path, name: str) -> None:
    frame = messy()
    store = prepared([write(frame, tmp_path / name)], tmp_path / "store")
    with write(frame, tmp_path / "again.csv").open(newline="") as file:
        train = list(csv.DictReader(file))[: len(frame) * 6 // 7]
    for column in SPARSE:
        texts = {canonical_text(row[column]) for row in train} - {"", "NA", "null", "NaN"}
        found = named(store.features, column)
        assert len(found) == len(texts)
        assert set(found) == texts, column
    assert store.features.values_of("text", [0, 1]) == [None, None]
    columns = {column.name: column.texts for column in store.features.columns}
    assert all(texts is not None for texts in columns.values())
    assert columns["flag"].files == columns["void"].files == ()  # type: ignore[union-attr]


def test_pieces_threads_and_memory_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = [f"value {i}" if i % 3 else str(i) for i in rng.zipf(1.3, 3000).clip(max=900).tolist()]
    first = prepare_values(values, tmp_path / "a")
    small = prepare_values(values, tmp_path / "b", "t.csv", workers=3, part_rows=100, most_in_memory=37)
    assert content(first.path) == content(small.path)
    assert set(named(first.features)) <= set(values)
    counts = first.features.counts("v")
    assert counts is not None
    train = values[: len(values) * 6 // 7]
    assert [train.count(str(value)) for value in named(first.features)] == counts[2:].tolist()


def test_hostile_and_endless_texts_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    store = prepare_values(HOSTILE * 9, tmp_path / "a")
    found = sorted(filter(None, named(store.features)))
    short = {text for text in HOSTILE if len(text) < 60}
    assert short == {text for text in found if len(text) < 60}
    cut = [text for text in found if len(text) >= 60]
    assert [text[:2] for text in cut] == ["xx", "🜁🜁"]
    assert [text[-2:] for text in cut] == ["xy", "🜁!"]
    assert all("…" in text and MOST_TEXT_BYTES - 8 < len(text.encode()) <= MOST_TEXT_BYTES for text in cut)
    [content_file, _] = store.features.columns[0].texts.files  # type: ignore[union-attr]
    assert content_file.num_values < 3 * MOST_TEXT_BYTES


def test_texts_that_wait_for_a_part_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [f"{i:03}" + "u" * 197 for i in range(400)] * 2
    first = prepare_values(values, tmp_path / "a")
    monkeypatch.setattr(parsing, "_MOST_TEXT_BYTES", 25_000)
    parts: list[int] = []
    write_part = Parts.write

    def counted(self: Parts, number: int, pieces: Sequence[RawPiece], *more: Any) -> PartInfo:
        parts.append(len(pieces))
        return write_part(self, number, pieces, *more)

    monkeypatch.setattr(Parts, "write", counted)
    second = prepare_values(values, tmp_path / "b")
    assert parts == [2] * 6 + [1]  # of 64 rows: 13 pieces, each with 12,800 bytes of texts
    assert content(first.path) == content(second.path)


def test_criteo_and_arrays_need_no_texts(tmp_path: Path) -> None:
    prepare(CriteoInput([write_criteo(tmp_path / "c.txt", make_rows(70, 0))]), tmp_path / "c", PrepareOptions())
    features = Store(tmp_path / "c").features
    words = features.encoder("cat_3").values[:2]  # type: ignore[union-attr]
    assert features.values_of("cat_3", [2, 0, 3, 1]) == [f"{words[0]:08x}", None, f"{words[1]:08x}", None]
    assert not list((tmp_path / "c").glob("vocabulary/*.texts"))
    ids_NF = np.arange(60).reshape(60, 1) % 3 + 2**31
    for part, array in (("dense", np.ones((60, 1), "f4")), ("labels", ids_NF % 2), ("sparse", ids_NF)):
        np.save(tmp_path / f"x_{part}.npy", array)
    prepare(NpyInput([tmp_path], as_rows=False), tmp_path / "n", PrepareOptions())
    features = Store(tmp_path / "n").features
    assert set(named(features, features.schema.keys[0])) == {str(2**31 + i) for i in range(3)}


def test_a_store_of_before_shows_digits(tmp_path: Path) -> None:
    store = prepare_values(["a", "b", "3"] * 20, tmp_path / "a")
    fingerprint = store.vocabulary_fingerprint()
    assert set(named(store.features)) == {"a", "b", "3"}
    store = without_texts(store.path)
    words = store.features.encoder("v").values  # type: ignore[union-attr]
    assert named(store.features) == [f"{word:08x}" for word in words.tolist()]
    assert store.vocabulary_fingerprint() == fingerprint


def test_a_vocabulary_that_is_taken_brings_its_texts(tmp_path: Path) -> None:
    first = prepare_values(["a", "b", "b", "3"] * 20, tmp_path / "a")
    options = {"vocabulary_from": first.path}
    second = prepare_values(["b", "z", "3"] * 20, tmp_path / "b", options=options)
    assert named(second.features) == named(first.features) == ["b", "3", "a"]
    without_texts(first.path)
    third = prepare_values(["b", "z", "3"] * 20, tmp_path / "c", options=options)
    assert third.features.columns[0].texts is None


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_many_texts_are_linked_and_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    store = prepare_values(["a", "b", "b"] * 20, tmp_path / "a")
    store.features.save(tmp_path / "linked")
    assert FeatureSpace.open(tmp_path / "linked").values_of("v", [2]) == ["b"]

    def other_disk(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", other_disk)
    monkeypatch.setattr(space, "MOST_COPIED", most)
    store.features.save(tmp_path / "copied")
    shutil.rmtree(tmp_path / "a")
    features = FeatureSpace.open(tmp_path / "copied")
    assert (features.values_of("v", [2]) == ["b"]) == (most > 0)
    assert features.vocabulary_fingerprint() == store.vocabulary_fingerprint()


@pytest.mark.parametrize("suffix", ["texts", "ends"])
def test_changed_texts_are_found(tmp_path: Path, suffix: str) -> None:
    store = prepare_values(["a", "b", "b"] * 20, tmp_path / "a")
    path = store.path / "vocabulary" / f"v.{suffix}"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match=f"v.{suffix}: changed since it was prepared"):
        Store(store.path).features.values_of("v", [2])
    path.unlink()
    with pytest.raises(DataError, match=f"v.{suffix}: cannot read"):
        Store(store.path).features.values_of("v", [2])
