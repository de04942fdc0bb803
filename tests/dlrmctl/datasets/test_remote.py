"""Predictions and stores on other machines, which run: S3 and sftp."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from dlrmctl.data.files import FRESH
from dlrmctl.data.remote.outputs import exists
from dlrmctl.data.store import upload as upload_module
from dlrmctl.data.store.upload import upload
from dlrmctl.settings.config import DataSettings
from dlrmctl.settings.stores import store_place
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process
from tests.servers import CuttingProxy

fsspec = pytest.importorskip("fsspec")
MODEL = [*SMALL[2:], "--batch-size", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a store made of them, and a run on it."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "train.txt").write_text(criteo_lines(1400))
    (directory / "other.txt").write_text("".join(criteo_lines(1400).splitlines(keepends=True)[::-1]))
    assert in_process("prepare", "criteo", directory / "train.txt", "-o", directory / "store").status == 0
    done = in_process("train", *MODEL, "--data", directory / "store", "--run-dir", directory / "run")
    assert done.status == 0, done.err
    return directory


@pytest.mark.parametrize("kind", ["s3", "sftp"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_to_another_machine(
    kind: str, suffix: str, request: pytest.FixtureRequest, place: Path, tmp_path: Path
):
    address = request.getfixturevalue(kind)
    command = ["predict", place / "run", place / "train.txt", "--labelled", "-o"]
    there, here = f"{address}/p-{kind}.{suffix}", tmp_path / f"p.{suffix}"
    assert in_process(*command, here).status == 0
    done = in_process(*command, there)
    assert done.status == 0, done.err
    assert f"wrote {there}: 1,400 predictions" in done.out
    filesystem, path = fsspec.core.url_to_fs(there)
    assert filesystem.cat_file(path) == here.read_bytes()
    assert len(pl.read_csv(here) if suffix == "csv" else pl.read_parquet(here)) == 1400
    again = in_process(*command, there)
    assert (again.status, again.err.strip().splitlines()[-2:]) == (
        2,
        [f"error: {there} already exists", "hint: choose another file, or remove this one"],
    )


def test_predictions_that_cannot_be_written_are_refused_before_rows_are_read(s3: str, place: Path):
    for out, problem in {
        "s3://none/p.csv": "s3://none/p.csv: cannot write: no such directory or bucket",
        f"{s3}/p.txt": "the name must end in .parquet or .csv",
        "https://example.org/p.csv": "web servers are only read from",
    }.items():
        done = in_process("predict", place / "run", place / "no-rows.txt", "-o", out)
        assert done.status == 2
        assert problem in done.err


def _upload(address: str, store: Path, served: Path, name: str) -> str:
    """Puts a store on a server, whose directory is `served` unless it is S3."""
    if address.startswith("s3"):
        fsspec.filesystem("s3").put(f"{store}/", f"bucket/{name}/", recursive=True)
    else:
        shutil.copytree(store, served / name, dirs_exist_ok=True)
    return f"{address}/{name}"


def _train(data: Path | str, run: Path, cache: Path, *more: str | Path) -> dict[str, object]:
    done = in_process("train", *MODEL, "--data", data, "--cache-dir", cache, "--run-dir", run, *more)
    assert done.status == 0, done.err
    results = json.loads((run / "results.json").read_text())
    return {split: results[split] for split in ("validation", "test")}


def test_a_store_elsewhere_trains_the_same_model_and_the_run_goes_on_with_it(s3: str, place: Path, tmp_path: Path):
    there, run = _upload(s3, place / "store", Path(), "store"), tmp_path / "run"
    here = json.loads((place / "run" / "results.json").read_text())
    assert _train(there, run, tmp_path / "cache")["test"] == here["test"]
    assert f'path = "{there}"' in (run / "run.toml").read_text()
    settings = DataSettings(cache_dir=str(tmp_path / "cache"))
    found = store_place(there, settings)
    assert store_place(there, settings) is found
    done = in_process("evaluate", run, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["test"]["ne"] == here["test"]["ne"]
    assert in_process("compare", place / "run", run).status == 0
    assert in_process("data", "show", there).status == 0
    done = in_process("prepare", "criteo", place / "other.txt", "-o", tmp_path / "next", "--extend", there)
    assert done.status == 0, done.err
    _upload(s3, tmp_path / "next", Path(), "store")
    assert store_place(there, settings) is not found
    done = in_process("train", "--resume", run, "--epochs", "2")
    assert done.status == 2
    assert "was trained on other data" in done.err


@pytest.mark.parametrize("kind", ["sftp", "https"])
def test_training_goes_on_after_dropped_connections(
    kind: str, request: pytest.FixtureRequest, place: Path, served: Path, tmp_path: Path
):
    address = request.getfixturevalue(kind)
    port = address.split(":")[2].partition("/")[0]
    proxy = CuttingProxy(int(port), cuts=3, after=30_000)
    there = _upload(address, place / "store", served, "store").replace(port, str(proxy.port), 1)
    here = json.loads((place / "run" / "results.json").read_text())
    assert _train(there, tmp_path / "run", tmp_path / "cache")["test"] == here["test"]
    assert proxy.cut == 3


@pytest.mark.slow
def test_two_ranks_share_the_cache(s3: str, place: Path, tmp_path: Path):
    there = _upload(s3, place / "store", Path(), "shared")
    near = _train(place / "store", tmp_path / "near", tmp_path / "cache", "--nproc", "2")
    assert _train(there, tmp_path / "far", tmp_path / "cache", "--nproc", "2") == near


@pytest.mark.parametrize("kind", ["s3", "sftp"])
def test_a_store_is_prepared_for_another_machine(
    kind: str, request: pytest.FixtureRequest, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there = f"{request.getfixturevalue(kind)}/made/store"
    command = ["prepare", "criteo", place / "train.txt", "--name", "clicks", "-o"]
    assert in_process(*command, tmp_path / "near").status == 0
    done = in_process(*command, there)
    assert done.status == 0, done.err
    assert not list((tmp_path / "dlrmctl" / "uploads").iterdir())
    filesystem, path = fsspec.core.url_to_fs(there)
    for file in (file for file in (tmp_path / "near").rglob("*") if file.is_file()):
        assert filesystem.cat_file(f"{path}/{file.relative_to(tmp_path / 'near')}") == file.read_bytes()
    done = in_process(*command, there)
    assert (done.status, "already exists" in done.err) == (2, True)


def _upload_and_die(store: Path, url: str, journal: Path, ssh: dict[str, str]) -> None:
    """Kills itself while it sends the third file."""
    fsspec.config.conf["sftp"] = ssh
    file_crc32, told = zlib.crc32, list[str]()

    def crc32(content: bytes, before: int) -> int:  # of what was sent
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return file_crc32(content, before)

    upload_module.RANGE_BYTES = 100  # type: ignore[attr-defined]
    upload_module.zlib = SimpleNamespace(crc32=crc32)  # type: ignore[attr-defined]
    upload(store, url, journal, told.append)


@pytest.mark.parametrize("kind", ["s3", "sftp"])
def test_an_upload_that_was_killed_shows_whole_files_and_continues(
    kind: str, request: pytest.FixtureRequest, place: Path, tmp_path: Path
):
    url, journal = f"{request.getfixturevalue(kind)}/killed-{kind}", tmp_path / "journal"
    upload_module._make_directory(url)
    files = {str(path.relative_to(place / "store")): path for path in (place / "store").rglob("*") if path.is_file()}
    killed = multiprocessing.get_context("spawn").Process(
        target=_upload_and_die, args=(place / "store", url, journal, fsspec.config.conf.get("sftp", {}))
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    seen = {name.removeprefix(f"{path}/"): name for name in filesystem.find(path)}
    whole = {name: there for name, there in seen.items() if not name.rpartition("/")[2].startswith(FRESH)}
    assert len(whole) == 2
    assert all(filesystem.cat_file(there) == files[name].read_bytes() for name, there in whole.items())
    later: list[str] = []
    upload(place / "store", url, journal, later.append)
    assert sorted([*later, *whole]) == sorted(files)
    filesystem.invalidate_cache()
    seen = {name.removeprefix(f"{path}/"): name for name in filesystem.find(path)}
    assert sorted(seen) == sorted(files)
    assert all(filesystem.cat_file(there) == files[name].read_bytes() for name, there in seen.items())
    if kind == "s3":
        assert "Uploads" not in filesystem.call_s3("list_multipart_uploads", Bucket="bucket")


def test_an_upload_that_was_interrupted_continues_and_the_manifest_is_last(s3: str, place: Path, tmp_path: Path):
    names: list[str] = []

    def until_the_fifth(name: str) -> None:
        names.append(name)
        if len(names) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(place / "store", f"{s3}/part", tmp_path / "journal", until_the_fifth)
    assert not exists(f"{s3}/part/manifest.json")
    later: list[str] = []
    upload(place / "store", f"{s3}/part", tmp_path / "journal", later.append)
    assert later[0] == names[-1]
    assert later[-1] == "manifest.json"
    assert sorted({*names, *later}) == sorted(names[:4] + later)


def test_a_store_that_cannot_be_written_is_refused_before_rows_are_read(place: Path, s3: str):
    done = in_process("prepare", "criteo", place / "no-rows.txt", "-o", "s3://none/store")
    assert done.status == 2
    assert "s3://none/store/manifest.json: cannot write: no such directory or bucket" in done.err


def test_a_server_without_ssh_is_one_line():
    pytest.importorskip("paramiko")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"sftp://user@127.0.0.1:{listening.getsockname()[1]}/x"
        command = [sys.executable, "-m", "dlrmctl", "data", "show", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
            connection, _ = listening.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()
            out, err = asking.communicate(timeout=60)
    assert (asking.returncode, out) == (2, "")
    assert [line.partition(":")[0] for line in err.strip().splitlines()] == ["error", "hint"]
    assert f"{url}/manifest.json: cannot read: Error reading SSH protocol banner" in err
