"""Raw files on other machines, read from servers that this test starts: S3 (moto), https (nginx) and sftp (sshd)."""

import getpass
import gzip
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrmctl.data import remote
from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import Input
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.prepare import prepare

fsspec = pytest.importorskip("fsspec")
TABLES = ("t.parquet", "t.csv", "t.arrow", "t.jsonl")
SCHEMA = {"label": "label", "dense": ["price"], "sparse": ["user"]}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture(scope="module")
def s3(files: Path) -> Iterator[str]:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=_free_port())
    server.start()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("bucket")
    for file in files.iterdir():
        filesystem.put_file(str(file), f"bucket/{file.name}")
    yield "s3://bucket"
    filesystem.clear_instance_cache()
    patch.undo()
    server.stop()


@pytest.fixture
def https(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    if not (shutil.which("nginx") and shutil.which("openssl")):
        pytest.skip("needs nginx and openssl")
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", _free_port()
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    (tmp_path / "nginx.conf").write_text(
        f"user {getpass.getuser()}; daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/a; proxy_temp_path {tmp_path}/b;\n"
        f"fastcgi_temp_path {tmp_path}/c; uwsgi_temp_path {tmp_path}/d; scgi_temp_path {tmp_path}/e;\n"
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n"
        f"root {files}; }} }}\n"
    )
    fsspec.config.conf["https"] = {"ssl": ssl.create_default_context(cafile=certificate)}
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    server = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.DEVNULL)
    _wait_for(port)
    fsspec.filesystem("https").clear_instance_cache()
    yield f"https://localhost:{port}"
    del fsspec.config.conf["https"]
    server.terminate()
    server.wait(10)


@pytest.fixture
def sftp(files: Path, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("paramiko")
    sshd = shutil.which("sshd")
    if not (sshd and shutil.which("ssh-keygen")):
        pytest.skip("needs sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd starts only with this directory
    port = _free_port()
    (tmp_path / "sshd").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    server = subprocess.Popen([sshd, "-D", "-f", str(tmp_path / "sshd")], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
    except AssertionError:
        pytest.skip("sshd does not run here")
    fsspec.config.conf["sftp"] = {"key_filename": str(tmp_path / "user")}
    yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}{files}"
    del fsspec.config.conf["sftp"]
    server.terminate()
    server.wait(10)


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


def test_every_format_is_read_as_from_this_machine(server: str, files: Path):
    sources = ("day_0", "day_1.gz")
    _same(CriteoInput([f"{server}/{name}" for name in sources]), CriteoInput([files / name for name in sources]))
    schema = read_schema(SCHEMA, "t.toml")
    for name in TABLES:
        _same(TableInput(schema, [f"{server}/{name}"]), TableInput(schema, [files / name]))


def test_patterns_find_files_and_a_store_has_the_same_bytes(s3: str, files: Path, tmp_path: Path):
    far, near = tmp_path / "far", tmp_path / "near"
    prepare(CriteoInput([f"{s3}/day_*"]), far, workers=1)
    prepare(CriteoInput([files / "day_0", files / "day_1.gz"]), near, workers=1)
    for file in near.glob("*.bin"):
        assert (far / file.name).read_bytes() == file.read_bytes()


class _Cutting:
    """A proxy that cuts its first connections after some bytes."""

    def __init__(self, target: int, cuts: int, after: int) -> None:
        self.cut, self._target, self._cuts, self._after = 0, target, cuts, after
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._socket.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        sent = 0
        try:
            while piece := source.recv(1 << 16):
                target.sendall(piece)
                sent += len(piece)
                if counted and sent > self._after and self.cut < self._cuts:
                    self.cut += 1
                    break
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["https", "sftp"])
def test_a_dropped_connection_is_made_up_for(kind: str, request: pytest.FixtureRequest, files: Path):
    address = request.getfixturevalue(kind)
    port = int(address.split(":")[2].partition("/")[0])
    proxy = _Cutting(port, cuts=3, after=400_000)
    _same(CriteoInput([f"{address.replace(str(port), str(proxy.port), 1)}/day_0"]), CriteoInput([files / "day_0"]))
    assert proxy.cut == 3


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
    file = remote.locate(f"{https}/day_0?signature=secret")
    assert "secret" not in f"{file} {file!r} {file.name} {remote.file_identity(file)}"
    assert CriteoInput([file.url]).sources[0].name == "day_0"


def test_a_host_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("aiohttp")
    with pytest.raises(DataError, match=r"https://no-such-host.invalid/day_0: cannot read: the host cannot be reached"):
        CriteoInput(["https://no-such-host.invalid/day_0"])
