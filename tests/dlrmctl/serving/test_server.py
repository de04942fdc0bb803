"""`dlrmctl serve`: a real process, asked by a real client."""

import io
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from dlrmctl.serving import Scorer
from dlrmctl.serving.app import ARROW
from tests.dlrmctl.commands import in_process, start_anew
from tests.dlrmctl.serving.test_scorer import GOOD


@contextmanager
def serving(place: Path, model: Path, *more: str) -> Iterator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """A server of a bundle, and a client of it."""
    process = start_anew("serve", model, "--json", *(more or ("--port", "0")), cwd=place)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        with httpx.Client(base_url=json.loads(line)["url"], timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[httpx.Client]:
    with serving(place, place / "model.dlrm", "--port", "0", "--max-rows", "50", "--max-bytes", "20k") as (_, client):
        yield client


def test_answers_are_the_scores_of_the_bundle(place: Path, client: httpx.Client):
    scorer = Scorer(place / "model.dlrm")
    rows = [GOOD, {**GOOD, "user": "nobody", "age": None}, {**GOOD, "item": 100, "tags": "a|b"}]
    wanted = scorer.score(rows).tolist()
    for body in (rows, {"rows": rows}):
        answer = client.post("/score", json=body)
        assert answer.status_code == 200
        assert answer.json()["probabilities"] == pytest.approx(wanted, abs=1e-7)
    assert client.post("/score", json=[]).json() == {"probabilities": []}
    content = io.BytesIO()
    pl.DataFrame([{**row, "tags": ["a", "b"], "item": 1} for row in rows[:2]]).write_ipc_stream(content)
    headers = {"content-type": ARROW, "accept": ARROW}
    answer = client.post("/score", content=content.getvalue(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert pl.read_ipc_stream(answer.content)["probability"].to_list() == pytest.approx(wanted[:2], abs=1e-7)


def _nulls(rows: int) -> bytes:
    """An Arrow stream of a column of nulls, which takes no bytes, with this many rows."""
    content = io.BytesIO()
    pl.DataFrame({"user": pl.repeat(None, 51, dtype=pl.Null, eager=True)}).write_ipc_stream(content)
    few, many = ((number).to_bytes(8, "little") for number in (51, rows))
    assert few in content.getvalue()
    return content.getvalue().replace(few, many)


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        ("[{]", {}, 400, "not JSON: "),
        ('"rows"', {}, 400, "send a list of rows"),
        ("[" * 9000, {}, 400, "not JSON"),
        (b"\xff", {}, 400, "not JSON"),
        (b"nothing", {"content-type": ARROW}, 400, "not an Arrow stream"),
        ("[]", {"content-type": "text/csv"}, 415, "content-type 'text/csv'; send application/json or"),
        (json.dumps([GOOD] * 51), {}, 413, "more than 50 rows"),
        (_nulls(1 << 31), {"content-type": ARROW}, 413, "more than 50 rows"),
        (b" " * 20_001, {}, 413, "the body is larger than 20,000 bytes"),
        ("[1]", {}, 422, "row 0: '1' is not an object with a value for each column"),
        (json.dumps([GOOD, {**GOOD, "age": "old"}]), {}, 422, "row 1, column 'age': 'old' is not a number"),
        (json.dumps([{"age": 1}]), {}, 422, "row 0, column 'price': the column is missing"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    client: httpx.Client, body: str | bytes, headers: dict[str, str], status: int, message: str
):
    answer = client.post("/score", content=body, headers=headers)
    assert answer.status_code == status
    assert message in answer.json()["error"]
    if status == 422:
        assert answer.json()["row"] == int("row 1" in message)


def test_the_server_tells_of_itself(client: httpx.Client):
    assert client.get("/health").json()["status"] == "ok"
    schema = client.get("/schema").json()
    assert {"name": "tags", "values": "list of values, of which the last 3 count"} in schema["columns"]
    assert [column["name"] for column in schema["columns"]][:3] == ["age", "price", "visited"]
    client.post("/score", json=[GOOD])
    metrics = client.get("/metrics").text
    assert 'dlrmctl_requests_total{status="200"}' in metrics
    assert "dlrmctl_batch_rows_bucket" in metrics


class _Load:
    """Threads that ask for scores until they are stopped."""

    def __init__(self, url: str, threads: int = 6) -> None:
        self.answers: list[float] = []
        self.refused = self.gone = 0
        self.others: list[Any] = []
        self._url, self._ended, self._lock = url, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        bad = number % 3 == 0
        body = [{**GOOD, "age": "old"}] if bad else [GOOD]
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(f"{self._url}/score", json=body)
                except httpx.TransportError:
                    with self._lock:
                        self.gone += 1
                    time.sleep(0.02)
                    continue
                with self._lock:
                    if bad and answer.status_code == 422:
                        self.refused += 1
                    elif not bad and answer.status_code == 200:
                        self.answers += answer.json()["probabilities"]
                    else:
                        self.others.append(answer.text)

    def wait(self, more: int) -> None:
        """Waits for this many more answers."""
        wanted, deadline = len(self.answers) + more, time.monotonic() + 60
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_when_models_change_and_none_is_wrong_when_the_server_is_killed(place: Path, tmp_path: Path):
    model, other = tmp_path / "model.dlrm", tmp_path / "other.dlrm"
    model.write_bytes((place / "model.dlrm").read_bytes())
    shutil.copytree(place / "run", tmp_path / "run")
    for words in (["calibrate", "--method", "bias"], ["export", "-o", other, "--calibrated"]):
        done = in_process(words[0], tmp_path / "run", *words[1:])
        assert done.status == 0, done.err
    first, second = (float(Scorer(file).score([GOOD])[0]) for file in (model, other))
    assert abs(first - second) > 1e-6
    with serving(tmp_path, model) as (process, client):
        url = str(client.base_url)
        load = _Load(url.rstrip("/"))
        load.wait(20)
        assert all(abs(answer - first) < 1e-7 for answer in load.answers)
        other.replace(model)
        assert client.post("/reload").status_code == 200
        load.wait(20)
        assert load.answers[-1] == pytest.approx(second, abs=1e-7)
        (tmp_path / "damaged").write_bytes(b"PK nothing")
        (tmp_path / "damaged").replace(model)
        process.send_signal(signal.SIGHUP)
        answer = client.post("/reload")
        assert answer.status_code == 409
        assert "the earlier model remains" in answer.json()["error"]
        load.wait(20)
        assert (load.gone, load.others) == (0, [])
        process.kill()
        process.wait()
        model.write_bytes((place / "model.dlrm").read_bytes())
        with serving(tmp_path, model, "--port", url.rstrip("/").rpartition(":")[2]) as (again, _):
            load.wait(20)
            load.stop()
            assert load.gone > 0
            assert load.refused > 0
            assert load.others == []
            assert {min((first, second), key=lambda p: abs(p - a)) for a in load.answers} == {first, second}
            assert all(min(abs(a - first), abs(a - second)) < 1e-7 for a in load.answers)
            again.terminate()
            assert again.wait(timeout=60) in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_what_cannot_be_served_is_one_line(place: Path, client: httpx.Client, tmp_path: Path):
    (tmp_path / "m.dlrm").write_bytes(b"nothing")
    port = str(client.base_url).rstrip("/").rpartition(":")[2]
    for arguments, message in (
        ([tmp_path / "m.dlrm", "--port", "0"], "m.dlrm: not a bundle of dlrmctl"),
        ([tmp_path / "none.dlrm"], "none.dlrm: no such file"),
        ([place / "model.dlrm", "--port", port], f"cannot listen on 127.0.0.1 port {port}: Address already in use"),
        ([place / "model.dlrm", "--port", "x"], "--port = 'x'"),
    ):
        done = in_process("serve", *arguments)
        assert done.status == 2
        assert message in done.err
        assert done.err.count("\n") <= 2
