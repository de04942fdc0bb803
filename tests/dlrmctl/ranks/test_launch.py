"""Running a function on new ranks: its result, or a single error, is returned."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.errors import Interrupted, UserError
from dlrmctl.ranks.launch import RankEnded, RankError, run_on_ranks

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests.dlrmctl.ranks.test_launch"


@pytest.fixture(autouse=True)
def _these_functions_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _where(scale: float) -> dict[str, Any]:
    return {"rank": os.environ.get("RANK"), "scaled": [scale * 2, float("nan")], "pid": os.getpid()}


def _fail(kind: str) -> None:
    if kind == "user":
        raise UserError("this cannot be", "try that")
    if kind == "data":
        raise DataError("line 7: no number")
    if kind == "bug":
        raise ZeroDivisionError("a bug on a rank")
    if kind == "signal" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "status":
        os._exit(7)
    time.sleep(0.3)
    raise UserError("only noticed that another rank is gone")


def _leave(touch: str) -> None:
    from dlrmctl.ranks.signals import stop_requests

    with stop_requests() as request:
        (Path(touch) / os.environ["RANK"]).touch()
        while not request.signal_number:
            time.sleep(0.01)
    raise Interrupted(request.signal_number)


def _wait_for_a_stopped_rank(touch: str, timeout: float = 300) -> None:
    from dlrmctl.ranks.group import process_group
    from dlrmctl.ranks.signals import stop_requests

    with process_group("cpu", timeout_seconds=timeout) as ranks, stop_requests():
        ranks.barrier()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        (Path(touch) / str(os.getpid())).touch()
        ranks.barrier()


def _until_it_waits(touch: Path) -> str:
    """Returns the process id of the rank that waits for a stopped one."""
    while not (found := list(touch.iterdir())):
        time.sleep(0.02)
    time.sleep(0.2)
    return found[0].name


def _is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_result_of_rank_0_comes_back():
    found = run_on_ranks(f"{HERE}:_where", {"scale": 1.5}, 2)
    assert found["rank"] == "0"
    assert found["scaled"][0] == 3.0
    assert found["scaled"][1] != found["scaled"][1]
    assert found["pid"] != os.getpid()


def test_more_ranks_than_cores_is_a_warning(capsys: pytest.CaptureFixture[str]):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        run_on_ranks(f"{HERE}:_where", {"scale": 1.5}, 2)
    finally:
        os.sched_setaffinity(0, cores)
    assert "warning: --nproc = 2 ranks on 1 cores" in capsys.readouterr().err


def test_one_rank_is_this_process():
    assert run_on_ranks(f"{HERE}:_where", {"scale": 1.5}, 1)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("user", UserError, "this cannot be"),
        ("data", DataError, "line 7: no number"),
        ("bug", RankError, "ZeroDivisionError: a bug on a rank"),
        ("signal", RankEnded, "rank 1 was ended by SIGKILL"),
        ("status", RankEnded, "rank 0 ended with status 7"),
    ],
)
def test_the_first_error_comes_back_and_no_output(
    kind: str, error: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(error, match=message) as caught:
        run_on_ranks(f"{HERE}:_fail", {"kind": kind}, 2)
    assert type(caught.value) is error
    assert capfd.readouterr().err == ""
    if isinstance(caught.value, RankEnded):
        assert caught.value.exit_status == {"signal": 137, "status": 7}[kind]


def test_a_thread_can_launch():
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run_on_ranks(f"{HERE}:_where", {"scale": 1.0}, 2)))
    thread.start()
    thread.join(60)
    assert found[0]["rank"] == "0"


def test_a_signal_goes_to_every_rank_and_is_raised(tmp_path: Path):
    def interrupt() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        run_on_ranks(f"{HERE}:_leave", {"touch": str(tmp_path)}, 2)
    thread.join()
    assert caught.value.exit_status == 143


def _report_and_stay() -> None:
    from dlrmctl.ranks.launch import claim_report

    if os.environ["RANK"] == "0":
        claim_report('{"kind": "user", "message": "this cannot be", "hint": null}')
    time.sleep(60)


def test_ranks_that_cannot_leave_after_an_error_are_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrmctl.ranks.launch.GRACE_SECONDS", 0.2)
    with pytest.raises(UserError, match="this cannot be"):
        run_on_ranks(f"{HERE}:_report_and_stay", {}, 2)


def test_a_signal_ends_ranks_that_wait_for_a_stopped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrmctl.ranks.launch.HEARING_SECONDS", 0.5)

    def interrupt() -> None:
        _until_it_waits(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        run_on_ranks(f"{HERE}:_wait_for_a_stopped_rank", {"touch": str(tmp_path)}, 2)
    thread.join()
    assert caught.value.exit_status == 143


def test_a_killed_launcher_leaves_no_ranks(tmp_path: Path):
    program = "import sys; from dlrmctl.ranks.launch import *; run_on_ranks(sys.argv[1], {'touch': sys.argv[2]}, 2)"
    launcher = subprocess.Popen([sys.executable, "-c", program, f"{HERE}:_wait_for_a_stopped_rank", str(tmp_path)])
    waiting = _until_it_waits(tmp_path)
    assert _is_running(waiting)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 20
    while _is_running(waiting):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stopped_rank_ends_the_others_in_time_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrmctl.ranks.launch.GRACE_SECONDS", 1e6)  # which a stopped rank would use up
    with pytest.raises(UserError, match=r"^rank 1 on \S+ gave no sign of life for \d+ s$"):
        run_on_ranks(f"{HERE}:_wait_for_a_stopped_rank", {"touch": str(tmp_path), "timeout": 3}, 2)
