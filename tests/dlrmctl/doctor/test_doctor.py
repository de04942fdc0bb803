"""`dlrmctl doctor` in broken environments: packages missing, truncated, or of another version."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dlrmctl.commands import in_process

REAL = Path(sysconfig.get_paths()["purelib"])


def scratch(path: Path, *, without: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """An environment whose packages are links to this one's; its interpreter, and its site-packages."""
    venv.create(path, with_pip=False)
    site = next((path / "lib").glob("python*")) / "site-packages"
    for entry in REAL.iterdir():
        if not any(entry.name == name or entry.name.startswith(name + "-") for name in without):
            (site / entry.name).symlink_to(entry)
    return path / "bin" / "python", site


def own_copy(site: Path, name: str) -> Path:
    """Instead of the link to a package, a directory of links to its files, which can be broken alone."""
    (site / name).unlink()
    shutil.copytree(REAL / name, site / name, copy_function=lambda source, target: os.symlink(source, target))
    return site / name


def examine(python: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [str(python), "-P", "-m", "dlrmctl", "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in report["findings"]}


def test_a_whole_environment_can_train_and_two_ranks_show_it_in_a_line_for_each_finding():
    done = in_process("doctor")
    assert done.status == 0, done.out
    assert "training can work here" in done.out
    [smoke] = [line for line in done.out.splitlines() if line.startswith("ok      2 ranks ")]
    assert "test log loss 0." in smoke
    found = [line for line in done.out.splitlines() if line.startswith(("ok ", "warning "))]
    assert {line[32:34] for line in found} == {"  "}, "what was found is in one column"
    assert " " not in {line[34] for line in found}


def _no_torch(path: Path) -> Path:
    return scratch(path, without=("torch",))[0]


def _torch_cut_short(path: Path) -> Path:
    python, site = scratch(path)
    library = own_copy(site, "torch") / "lib" / "libtorch_cpu.so"
    content = library.read_bytes()[:4096]
    library.unlink()
    library.write_bytes(content)
    return python


def _no_fbgemm(path: Path) -> Path:
    return scratch(path, without=("fbgemm_gpu", "fbgemm_gpu_cpu"))[0]


def _fbgemm_cut_short_and_other_torchrec(path: Path) -> Path:
    python, site = scratch(path)
    for library in own_copy(site, "fbgemm_gpu").rglob("*.so"):
        library.unlink()
        library.write_bytes(b"\x7fELF and no more")
    about = own_copy(site, next(REAL.glob("torchrec-*.dist-info")).name)
    metadata = about / "METADATA"
    text = metadata.read_text().replace("Version: 1.8", "Version: 1.6")
    metadata.unlink()
    metadata.write_text(text)
    return python


@pytest.mark.parametrize(
    ("breaks", "problems", "smoke"),
    [
        (_no_torch, {"import torch": ("No module named 'torch'", "pip install")}, False),
        (_torch_cut_short, {"import torch": ("ended by SIG", "pip install --force-reinstall --no-deps")}, False),
        (_no_fbgemm, {"import fbgemm_gpu": ("No module named 'fbgemm_gpu'", "pip install")}, True),
        (
            _fbgemm_cut_short_and_other_torchrec,
            {
                "import fbgemm_gpu": ("", "pip install --force-reinstall --no-deps fbgemm-gpu"),
                "pairing": ("goes with torchrec 1.8", "pip install -e ."),
            },
            False,
        ),
    ],
)
def test_a_broken_environment_is_examined_to_the_end_and_told_how_to_fix_it(
    tmp_path: Path, breaks: Callable[[Path], Path], problems: dict[str, tuple[str, str]], smoke: bool
):
    status, report, _ = examine(breaks(tmp_path / "env"), "--smoke" if smoke else "--no-smoke")
    assert status == 1
    assert report["can_train"] is False
    for name, (found, remedy) in problems.items():
        finding = by_name(report)[name]
        assert finding["status"] == "problem"
        assert found in finding["found"]
        assert remedy in finding["remedy"]
    assert by_name(report)["memory"]["status"] != "problem", "the other checks went on"
    if smoke:
        assert by_name(report)["2 ranks"]["status"] == "problem"


def test_what_a_wheel_asks_for_is_found(tmp_path: Path):
    python, site = scratch(tmp_path / "env")
    metadata = next(REAL.glob("dlrmctl-*.dist-info"))
    copy = own_copy(site, metadata.name) / "METADATA"
    build = next(REAL.glob("fbgemm_gpu-*.dist-info")).name.removeprefix("fbgemm_gpu-").removesuffix(".dist-info")
    lines = [line for line in copy.read_text().splitlines() if not line.startswith("Requires-Dist: fbgemm")]
    copy.unlink()
    copy.write_text("\n".join([*lines[:3], f"Requires-Dist: fbgemm-gpu=={build}", *lines[3:]]))
    status, report, _ = examine(python, "--no-smoke")
    assert status == 0, report
    assert by_name(report)["fbgemm-gpu"]["found"] == build


def test_a_machine_without_a_place_for_temporary_files_is_one_line_and_doctor_says_it(tmp_path: Path):
    # With no byte to any file, none of the places that Python tries is usable.
    shell = f'ulimit -f 0; exec "{sys.executable}" -P -m dlrmctl "$@"'

    def limited(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["bash", "-c", shell, "bash", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)

    for train in (["--nproc", "2"], ["--run-dir", "run"]):
        done = limited("train", "--dataset", "synthetic", *train)
        assert done.returncode == 2, done.stderr
        error, hint = done.stderr.strip().splitlines()
        assert error.startswith("error: there is no usable temporary directory")
        assert hint.startswith("hint: export TMPDIR=DIR")
    assert list(tmp_path.iterdir()) == []
    done = limited("doctor", "--json")
    assert done.returncode == 1, done.stderr
    findings = by_name(json.loads(done.stdout))
    for name in ("disk for temporary files", "2 ranks"):
        assert findings[name]["status"] == "problem", name
        assert findings[name]["remedy"].startswith("export TMPDIR=DIR"), name
    # Some builds of torch write a file when torchrec is imported.
    torchrec = findings["import torchrec"]
    assert torchrec["status"] == "ok" or torchrec["remedy"].startswith("export TMPDIR=DIR")
