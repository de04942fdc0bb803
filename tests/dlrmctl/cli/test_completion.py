"""Shell completion in bash, without loading heavy modules."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dlrmctl.commands import environment

PROGRAM = (
    "import sys\n"
    "sys.argv[0] = 'dlrmctl'\n"
    "from dlrmctl.cli.main import main\n"
    "try:\n"
    "    main()\n"
    "finally:\n"
    "    heavy = {'torch', 'numpy', 'polars'} & set(sys.modules)\n"
    "    assert not heavy, heavy\n"
)


def _completed(words: str, cwd: Path) -> list[str]:
    changes = {"_DLRMCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, cwd=cwd, env=environment(**changes)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dlrmctl tra", ["train"]),
        ("dlrmctl data sh", ["show"]),
        ("dlrmctl train --embed", ["--embedding"]),
        ("dlrmctl train --embedding h", ["hash", "head"]),
        ("dlrmctl evaluate ", ["runs/first", "runs/second"]),
        ("dlrmctl plot runs/first runs/s", ["runs/second"]),
        ("dlrmctl train --data ", ["clicks"]),
        ("dlrmctl prepare --split ", ["order", "last-file", "random", "time:COLUMN", "group:COLUMN"]),
    ],
)
def test_words_are_completed(words: str, expected: list[str], tmp_path: Path):
    for path in ("runs/first/run.toml", "runs/second/run.toml", "clicks/manifest.json", "clicks/train.bin"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert _completed(words, tmp_path) == expected
