"""Files that are written on other machines, which run: S3 and sftp."""

import hashlib
import os
from pathlib import Path

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.remote import outputs
from dlrmctl.data.remote.files import locate
from dlrmctl.data.remote.outputs import check_writable_at, exists, new_file
from tests.servers import CuttingProxy

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_PART_BYTES", 5 << 20)


@pytest.fixture(params=["s3", "sftp"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def _content(url: str) -> bytes:
    with locate(url).open() as stream:
        return stream.read()


def _sent(url: str, content: bytes) -> None:
    with new_file(url) as file:
        for at in range(0, len(content), 1 << 20):
            file.write(content[at : at + (1 << 20)])


@pytest.mark.parametrize("size", [0, 10, 11 << 20])
def test_a_file_has_the_bytes_that_were_written(server: str, size: int):
    content = os.urandom(size)
    _sent(f"{server}/{size}.bin", content)
    assert _content(f"{server}/{size}.bin") == content


def test_a_file_is_there_when_it_is_whole_and_nothing_else_remains(server: str, served: Path):
    url = f"{server}/interrupted.csv"

    def interrupted() -> None:
        with new_file(url) as file:
            file.write(bytes(11 << 20))
            assert not exists(url)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not exists(url)
    assert not list(served.glob(".dlrmctl*"))
    if server.startswith("s3"):
        assert "Uploads" not in fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket="bucket")


@pytest.mark.parametrize("kind", ["s3", "sftp"])
def test_a_connection_that_is_dropped_loses_no_byte(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    address = request.getfixturevalue(kind)
    endpoint = os.environ["AWS_ENDPOINT_URL"] if kind == "s3" else address
    port = endpoint.split(":")[2].partition("/")[0]
    proxy = CuttingProxy(int(port), cuts=3, after=2_000_000, sent=True)
    if kind == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.replace(port, str(proxy.port)))
        fsspec.filesystem("s3").clear_instance_cache()
    url = f"{address.replace(port, str(proxy.port), 1)}/{kind}-cut.bin"
    content = os.urandom(11 << 20)
    _sent(url, content)
    assert proxy.cut == 3
    assert hashlib.sha256(_content(url)).digest() == hashlib.sha256(content).digest()
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_file_that_cannot_be_written_is_one_line_before_it_is_written(s3: str, sftp: str):
    with pytest.raises(DataError, match=r"s3://none/a.csv: cannot write: no such directory or bucket"):
        check_writable_at("s3://none/a.csv")
    with pytest.raises(DataError, match=r"none/a.csv: cannot write: no such directory or bucket"):
        check_writable_at(f"{sftp}/none/a.csv")
    with pytest.raises(DataError, match=r"/proc/a.csv: cannot write"):
        check_writable_at(f"{sftp.partition('/tmp')[0]}/proc/a.csv")
    with pytest.raises(DataError, match=r"https://host/a.csv: web servers are only read from"):
        check_writable_at("https://host/a.csv")
    with pytest.raises(DataError, match=r"credentials"):
        check_writable_at("s3://key:secret@bucket/a.csv")
