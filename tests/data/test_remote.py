"""Raw files on other machines, read from servers that run: S3, https and sftp."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import Input
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.remote.files import file_identity, locate
from tests.servers import CuttingProxy

fsspec = pytest.importorskip("fsspec")
TABLES = ("t.parquet", "t.csv", "t.arrow", "t.jsonl")
SCHEMA = {"label": "label", "dense": ["price"], "sparse": ["user"]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of Criteo's format, plain and packed, and a table in four formats."""
    place = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    lines = [
        f"{i % 2}\t" + "\t".join(map(str, rng.integers(0, 99, 13))) + "\t" + "\t".join(f"{v:08x}" for v in row)
        for i, row in enumerate(rng.integers(0, 50, (20_000, 26)).tolist())
    ]
    (place / "day_0").write_text("\n".join(lines[:15_000]) + "\n")
    (place / "day_1.gz").write_bytes(gzip.compress(("\n".join(lines[15_000:]) + "\n").encode(), 1, mtime=0))
    table = pl.DataFrame({"label": rng.integers(0, 2, 9000), "price": rng.random(9000), "user": range(9000)})
    table.write_parquet(place / "t.parquet", row_group_size=2000)
    table.write_csv(place / "t.csv")
    table.write_ipc(place / "t.arrow")
    table.write_ndjson(place / "t.jsonl")
    return place


@pytest.fixture(params=["s3", "https", "sftp"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def _examples(input: Input) -> list[np.ndarray]:
    """All values, piece by piece."""
    pieces = [task.read() for task in input.tasks()]
    assert not any(piece.bad for piece in pieces)
    return [
        array
        for piece in pieces
        for array in (piece.labels_N, piece.dense_IN, *(column.values for column in piece.sparse))
    ]


def _same(far: Input, near: Input) -> None:
    for one, other in zip(_examples(far), _examples(near), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_format_is_read_as_from_this_machine(server: str, served: Path):
    sources = ("day_0", "day_1.gz")
    _same(CriteoInput([f"{server}/{name}" for name in sources]), CriteoInput([served / name for name in sources]))
    schema = read_schema(SCHEMA, "t.toml")
    for name in TABLES:
        _same(TableInput(schema, [f"{server}/{name}"]), TableInput(schema, [served / name]))


def test_patterns_find_files_and_a_store_has_the_same_bytes(s3: str, served: Path, tmp_path: Path):
    far, near = tmp_path / "far", tmp_path / "near"
    prepare(CriteoInput([f"{s3}/day_*"]), far, workers=1)
    prepare(CriteoInput([served / "day_0", served / "day_1.gz"]), near, workers=1)
    for file in near.glob("*.bin"):
        assert (far / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["https", "sftp"])
def test_a_dropped_connection_is_made_up_for(kind: str, request: pytest.FixtureRequest, served: Path):
    address = request.getfixturevalue(kind)
    port = int(address.split(":")[2].partition("/")[0])
    proxy = CuttingProxy(port, cuts=3, after=400_000)
    _same(CriteoInput([f"{address.replace(str(port), str(proxy.port), 1)}/day_0"]), CriteoInput([served / "day_0"]))
    assert proxy.cut == 3


@pytest.mark.parametrize("kind", ["https", "sftp"])
def test_a_connection_that_was_kept_and_is_closed_is_made_again(kind: str, request: pytest.FixtureRequest):
    address = request.getfixturevalue(kind)
    port = address.split(":")[2].partition("/")[0]
    proxy = CuttingProxy(int(port), cuts=0, after=0)
    url = address.replace(port, str(proxy.port), 1) + "/day_0"
    found = locate(url)
    proxy.cut_all()
    assert locate(url) == found


def test_a_file_that_changes_is_named(s3: str):
    fsspec.filesystem("s3").copy("bucket/day_0", "bucket/growing")
    far = CriteoInput([f"{s3}/growing"])
    fsspec.filesystem("s3").pipe_file("bucket/growing", b"other")
    with pytest.raises(DataError, match="s3://bucket/growing: the file has changed while it was read"):
        _examples(far)


def test_missing_files_and_buckets_are_one_line(server: str):
    with pytest.raises(DataError, match="no_such_file: cannot read: no such file"):
        CriteoInput([f"{server}/no_such_file"])


def test_credentials_are_refused_and_signatures_are_not_shown(https: str):
    with pytest.raises(DataError, match="credentials") as refused:
        CriteoInput(["sftp://me:secret@host/day_0"])
    assert "secret" not in str(refused.value)
    file = locate(f"{https}/day_0?signature=secret")
    assert "secret" not in f"{file} {file!r} {file.name} {file_identity(file)}"
    assert CriteoInput([file.url]).sources[0].name == "day_0"


def test_a_host_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("aiohttp")
    with pytest.raises(DataError, match=r"https://no-such-host.invalid/day_0: cannot read: the host cannot be reached"):
        CriteoInput(["https://no-such-host.invalid/day_0"])
