"""Servers that tests start: S3 (moto), https (nginx) and sftp (sshd), and a proxy that cuts connections.

A module that overrides the fixture `served` chooses the files.
"""

import getpass
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the files: those in S3 are copies."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def s3(served: Path) -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=_free_port())
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    # The buckets are those of the process.
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("bucket")
    for file in served.iterdir():
        filesystem.put_file(str(file), f"bucket/{file.name}")
    yield "s3://bucket"
    filesystem.clear_instance_cache()
    patch.undo()
    server.stop()


@pytest.fixture
def https(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
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
        f"root {served}; }} }}\n"
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
def sftp(served: Path, tmp_path: Path) -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
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
    yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}{served}"
    del fsspec.config.conf["sftp"]
    server.terminate()
    server.wait(10)


class CuttingProxy:
    """A proxy that cuts its first connections after some bytes, of those received or sent."""

    def __init__(self, target: int, cuts: int, after: int, *, sent: bool = False) -> None:
        self._sent = sent
        self.cut, self._target, self._cuts, self._after = 0, target, cuts, after
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._socket.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, self._sent), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, not self._sent), daemon=True).start()

    def cut_all(self) -> None:
        """Cuts the connections there are."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

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
