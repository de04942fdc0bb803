"""A preparation in processes or on a cluster makes the same store, whatever is killed."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.preparation.report import PrepareProgress
from dlrmctl.data.splits import Split
from dlrmctl.data.workers.cluster import ClusterWorkers
from dlrmctl.data.workers.pool import Shared, Workers, WorkersLost
from dlrmctl.data.workers.processes import ProcessWorkers
from tests.data.criteo_files import make_rows, write

OPTIONS = {"block_rows": 64, "raw_sample": 20}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("raw")
    return [write(place / name, make_rows(400, seed)) for seed, name in enumerate(("day_0", "day_1.gz"))]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessWorkers]:
    with pytest.MonkeyPatch.context() as patch, ProcessWorkers(2) as workers:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))  # calls of this file are found in its processes
        yield workers


def _prepare(raw: list[Path], out: Path, workers: int | Workers, progress: Any = None, **options: Any) -> None:
    chosen = PrepareOptions(**{**OPTIONS, **options})
    source = CriteoInput(raw, piece_bytes=8000)
    prepare(source, out, chosen, progress, workers=workers, part_rows=100, most_in_memory=50, save_seconds=0)


def _content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        {"keep_rare": True},
        {"limit": 333, "sample_negatives": 0.5},
        {"split": Split("random", seed=3)},
        {"split": Split("group", "cat_2", seed=3), "sample_negatives": 0.5},
        {"hash_rows": 100},
    ],
)
def test_processes_make_the_bytes_of_threads(
    raw: list[Path], processes: ProcessWorkers, tmp_path: Path, options: dict[str, Any]
) -> None:
    for name, workers in (("threads", 1), ("processes", processes)):
        _prepare(raw, tmp_path / name, workers, **options)
    assert _content(tmp_path / "processes") == _content(tmp_path / "threads")


@pytest.mark.parametrize("split", [Split("time", "day"), Split("group", "user")])
def test_processes_make_the_bytes_of_threads_for_a_table_by_a_column(
    processes: ProcessWorkers, tmp_path: Path, split: Split
) -> None:
    users = [f"u{n % 37}" if n % 9 else "" for n in range(900)]  # a row without a user is drawn by its number
    lines = [f"{n % 2},{user},{n % 5}.5,2026-01-{n * 5 % 28 + 1:02}" for n, user in enumerate(users)]
    (tmp_path / "t.csv").write_text("\n".join(["clicked,user,price,day", *lines, "2,bad,1,2026-01-01"]))
    schema = read_schema({"label": "clicked", "sparse": ["user"], "dense": ["price"]}, "my.toml")
    for name, workers in (("threads", 1), ("processes", processes)):
        input = TableInput(schema, [tmp_path / "t.csv"], split=split, piece_bytes=3000)
        prepare(input, tmp_path / name, PrepareOptions(split=split, block_rows=64), workers=workers)  # type: ignore[arg-type]
    assert _content(tmp_path / "processes") == _content(tmp_path / "threads")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl"])
def test_processes_make_the_bytes_of_threads_for_text(processes: ProcessWorkers, tmp_path: Path, name: str) -> None:
    rows = [{"clicked": n % 2, "user": f'user "{n % 37}"\nof {n % 3}', "price": n / 7} for n in range(900)]
    rows[500]["clicked"] = 2
    text = "\n".join(map(json.dumps, rows))
    if "csv" in name:
        text = "\n".join(
            ["clicked,user,price", *('{clicked},"{}",{price}'.format(r["user"].replace('"', '""'), **r) for r in rows)]
        )
    content = f"{text}\nnot a row\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    schema = read_schema({"label": "clicked", "sparse": ["user"], "dense": ["price"]}, "my.toml")
    for made, workers in (("threads", 1), ("processes", processes)):
        input = TableInput(schema, [tmp_path / name], piece_bytes=3000)
        report = prepare(input, tmp_path / made, PrepareOptions(block_rows=64), workers=workers)  # type: ignore[arg-type]
        assert [line.line for line in report.examples] == ([1002, 1802] if "csv" in name else [501, 901])
    assert _content(tmp_path / "processes") == _content(tmp_path / "threads")


def _die_once(mark: Path) -> int:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise DataError("day_1, line 7: wrong", "mend it")


def test_a_killed_process_is_replaced_and_its_task_repeated(processes: ProcessWorkers, tmp_path: Path) -> None:
    assert list(processes.in_order([partial(_die_once, tmp_path / "mark")])) == [7]
    with pytest.raises(WorkersLost, match="was killed 3 times at the same task"):
        list(processes.in_order([_die]))


def test_an_error_of_a_process_is_the_same_line(processes: ProcessWorkers) -> None:
    with pytest.raises(DataError, match="day_1, line 7: wrong") as caught:
        list(processes.in_order([_fail]))
    assert caught.value.hint == "mend it"


def test_processes_end_with_a_killed_parent() -> None:
    code = (
        "import time; from dlrmctl.data.workers.processes import ProcessWorkers; import os, functools, time\n"
        "w = ProcessWorkers(1); print(w.submit(os.getpid).result(), flush=True)\n"
        "w.submit(functools.partial(time.sleep, 60)); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    _wait(lambda: not Path(f"/proc/{child}").exists() or b" Z " in Path(f"/proc/{child}/stat").read_bytes())


def test_a_shared_object_is_unpacked_once(processes: ProcessWorkers) -> None:
    shared = Shared({"a": 1})
    with ProcessWorkers(1) as one:
        first, second = one.in_order([partial(_place, shared), partial(_place, shared)])
    assert first == second
    assert shared.get() == {"a": 1}


def _place(shared: Shared[dict[str, int]]) -> int:
    return id(shared.get())


def _wait(done: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def _scheduler(port: int) -> "subprocess.Popen[bytes]":
    return _dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")


def _dask(*words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "dask", *words], stderr=subprocess.DEVNULL)


@contextmanager
def _cluster(port: int, place: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """A scheduler and three workers."""
    address = f"tcp://127.0.0.1:{port}"
    own = ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(place)]
    started = [_scheduler(port), *(_dask("worker", address, *own) for _ in range(3))]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _connect(address: str, workers: int) -> ClusterWorkers:
    from distributed import Client

    with Client(address, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=30)
    return ClusterWorkers(address)


def test_a_cluster_makes_the_bytes_of_one_machine_whatever_is_killed(raw: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    port = _free_port()
    address, seen = f"tcp://127.0.0.1:{port}", list[str]()
    _prepare(raw, tmp_path / "one", 1)
    with _cluster(port, tmp_path / "dask") as (scheduler, worker, *_):

        def kill_worker(progress: PrepareProgress) -> None:
            if progress.phase == "encode" and not worker.poll() and "killed" not in seen:
                seen.append("killed")
                worker.kill()

        def kill_scheduler(progress: PrepareProgress) -> None:
            if progress.phase == "encode":
                scheduler.kill()

        with _connect(address, 3) as cluster:
            for error, call in (
                (FileNotFoundError, partial(os.stat, tmp_path / "missing")),
                (UnboundLocalError, partial(exec, "def f():\n print(x)\n x = 1\nf()")),
            ):
                with pytest.raises(error):  # of the call, not of the cluster
                    list(cluster.in_order([call]))
            _prepare(raw, tmp_path / "three", cluster, kill_worker)
        assert seen == ["killed"]
        assert _content(tmp_path / "three") == _content(tmp_path / "one")
        with _connect(address, 2) as cluster, pytest.raises(DataError, match="the scheduler was lost") as caught:
            _prepare(raw, tmp_path / "lost", cluster, kill_scheduler)
        assert "the same command continues" in str(caught.value.hint)
        assert (tmp_path / "lost.partial").exists()
    _prepare(raw, tmp_path / "lost", 2)
    assert _content(tmp_path / "lost") == _content(tmp_path / "one")


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1", "abc://127.0.0.1:1", "tls://127.0.0.1:1"])
def test_a_wrong_address_is_refused_without_a_client(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.delattr(distributed.Client, "__init__")
    with pytest.raises(DataError, match=f"{address}: cannot connect to the scheduler: "):
        ClusterWorkers(address)


def test_an_address_without_a_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("dlrmctl.data.workers.cluster._CONNECT_SECONDS", 1)
    with pytest.raises(DataError, match="cannot connect to the scheduler"):
        ClusterWorkers(f"tcp://127.0.0.1:{_free_port()}")
