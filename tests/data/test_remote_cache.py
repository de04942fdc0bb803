"""The local cache of ranges of remote files: bounded, shared by processes, and right after a kill."""

import os
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.remote.cache import CachedFile, RangeCache
from dlrmctl.data.remote.files import locate
from dlrmctl.data.store.places import RemotePlace
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic

fsspec = pytest.importorskip("fsspec")
PIECE = 1 << 16


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    (directory / "file").write_bytes(os.urandom(64 * PIECE))
    return directory


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _read(file: CachedFile, number: int) -> bytes:
    content = np.empty(PIECE, np.uint8)
    assert file.read(number * PIECE, content)[0] == PIECE
    return content.tobytes()


def test_the_cache_stays_within_its_bound_and_keeps_what_was_used_last(s3: str, served: Path, tmp_path: Path):
    whole = (served / "file").read_bytes()
    file = CachedFile(locate(f"{s3}/file"), RangeCache(tmp_path, 16 * PIECE))
    for number in range(64):
        _read(file, 0)
        assert _read(file, number) == whole[number * PIECE : (number + 1) * PIECE]
        assert _size(tmp_path) <= 16 * PIECE
    assert file.stamp(0) is not None
    assert file.stamp(63 * PIECE) is not None
    assert file.stamp(PIECE) is None


def test_ranges_are_read_from_the_cache_even_when_they_are_shared(s3: str, tmp_path: Path):
    files = [CachedFile(locate(f"{s3}/file"), RangeCache(tmp_path, 1 << 26)) for _ in range(2)]
    _read(files[0], 5)
    stamp = files[1].stamp(5 * PIECE)
    _read(files[1], 5)
    assert stamp == files[1].stamp(5 * PIECE) is not None


def test_incomplete_and_damaged_ranges_are_read_again(s3: str, tmp_path: Path):
    write_store(Synthetic(1, 900, 10, 10, cardinalities=(5, 300)), tmp_path / "store")
    fsspec.filesystem("s3").put(f"{tmp_path / 'store'}/", "bucket/store/", recursive=True)
    cache = RangeCache(tmp_path / "cache", 1 << 26)
    assert len(Store(RemotePlace(f"{s3}/store", cache)).read_block("train", 0)) == 900
    (kept,) = (tmp_path / "cache" / "ranges").glob("*/*")
    for damaged in (kept.read_bytes()[:-1], bytes(kept.stat().st_size)):
        kept.write_bytes(damaged)
        assert len(Store(RemotePlace(f"{s3}/store", cache)).read_block("train", 0)) == 900
    assert kept.read_bytes() == (tmp_path / "store" / "train.bin").read_bytes()


def test_a_store_that_changes_is_named(s3: str, tmp_path: Path):
    for seed, name in ((1, "one"), (2, "two")):
        write_store(Synthetic(seed, 900, 10, 10, cardinalities=(5, 300)), tmp_path / name)
    filesystem, cache = fsspec.filesystem("s3"), RangeCache(tmp_path / "cache", 1 << 26)
    filesystem.put(f"{tmp_path / 'one'}/", "bucket/changing/", recursive=True)
    store = Store(RemotePlace(f"{s3}/changing", cache))
    filesystem.put(f"{tmp_path / 'two'}/", "bucket/changing/", recursive=True)
    with pytest.raises(DataError, match=r"s3://bucket/changing/train.bin: the file has changed while it was read"):
        store.read_block("train", 0)
    assert Store(RemotePlace(f"{s3}/changing", cache)).fingerprint() == Store(tmp_path / "two").fingerprint()
    filesystem.rm("bucket/changing/manifest.json")
    with pytest.raises(DataError, match=r"s3://bucket/changing: no manifest.json, so not a store"):
        RemotePlace(f"{s3}/changing", cache)
