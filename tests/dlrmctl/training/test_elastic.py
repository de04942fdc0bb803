"""torchrun that loses a machine: the others continue from the last checkpoint, on fewer ranks."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dlrmctl.checkpoints import read_tensors
from tests.dlrmctl.commands import COMMAND, SMALL, environment, in_process

STEPS = 60_000 // 240
RUN = [
    *(*SMALL, "--synthetic-rows", "60000", "--batch-size", "240", "--checkpoint-every", "20", "--evaluations", "1"),
    # Gentle rates do not amplify the rounding of sums, which differs with the number of ranks.
    *("--dense-optimizer", "sgd", "--dense-lr", "0.01", "--sparse-lr", "0.01", "--qr-lr", "0.01"),
]


class _Agents:
    """torchrun on machines of one rank, which are processes here; the first hosts the rendezvous."""

    def __init__(self, place: Path, nnodes: str, arguments: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", nnodes, "--nproc-per-node", "1"),
            *("--max-restarts", "3", "--rdzv-id", "elastic", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"),
            *("--rdzv-conf", "last_call_timeout=15"),
            *("--no-python", *COMMAND, *arguments),
        ]
        self.place = place
        self.running: list[subprocess.Popen[bytes]] = []
        self.start()
        while not _is_open(port):
            assert self.running[0].poll() is None, self.said()
            time.sleep(0.05)

    def start(self) -> None:
        with (self.place / f"agent-{len(self.running)}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(self.command, cwd=self.place, env=environment(), stdout=log, stderr=log)
            )

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.place.glob("agent-*.log")))

    def lose_one(self) -> None:
        """Kills an agent that does not host the rendezvous, and its rank, which is not rank 0."""
        for agent in self.running[1:]:
            [rank] = _children(agent.pid)
            if b"RANK=0\0" not in Path(f"/proc/{rank}/environ").read_bytes().replace(b"LOCAL_RANK=0\0", b""):
                agent.kill()
                os.kill(rank, signal.SIGKILL)
                self.running.remove(agent)
                return
        raise AssertionError(self.said())

    def kill(self) -> None:
        for agent in self.running:
            ranks = _children(agent.pid) if agent.poll() is None else []
            agent.kill()
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _children(process: int) -> list[int]:
    return [int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in path.read_text().split()]


@pytest.fixture
def four_agents(tmp_path: Path) -> Iterator[_Agents]:
    agents = _Agents(tmp_path, "3:4", ["train", *RUN, "--run-dir", "run", "--resume", "auto"])
    for _ in range(3):
        agents.start()
    yield agents
    agents.kill()


@pytest.mark.slow
def test_four_machines_that_lose_one_continue_as_three(tmp_path: Path, four_agents: _Agents):
    run, deadline = tmp_path / "run", time.monotonic() + 300
    while not list(run.glob("checkpoints/step-*[0-9]")):
        assert time.monotonic() < deadline, four_agents.said()
        time.sleep(0.01)
    assert json.loads((run / "environment.json").read_text())["world_size"] == 4
    saved = max(int(path.name[5:]) for path in run.glob("checkpoints/step-*[0-9]"))
    four_agents.lose_one()
    for agent in four_agents.running:
        assert agent.wait(300) == 0, four_agents.said()
    assert json.loads((run / "environment.json").read_text())["world_size"] == 3
    found = re.search(r"resumed at step ([\d,]+)", four_agents.said())
    assert found
    assert saved <= int(found[1].replace(",", "")) < STEPS

    straight = in_process("train", *RUN, "--run-dir", tmp_path / "straight", "--json")
    assert straight.status == 0, straight.err
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == STEPS
    # As between one rank and two: rounding is 6e-8 for every sum, and there are a few dozen of them.
    assert results["validation"]["log_loss"] == pytest.approx(straight.json()["validation"]["log_loss"], rel=5e-6)
    ours, theirs = (read_tensors(path / "checkpoints" / f"step-{STEPS}") for path in (run, tmp_path / "straight"))
    for name in ours:
        if name.endswith("weight"):
            scale = float(theirs[name].abs().max())
            assert float((ours[name] - theirs[name]).abs().max()) <= 1e-4 * scale, name
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [
        json.loads(line)["step"] for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()
    ]
