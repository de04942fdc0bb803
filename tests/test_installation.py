"""What an installation holds, and what it asks pip for."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("dlrmctl", "data", "embeddings", "models", "optim")
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


def _hook(tree: Path, hook: str, out: Path, **environment: str) -> Path:
    """Calls one hook of the build backend, as pip does, and returns what it made."""
    out.mkdir(exist_ok=True)
    program = f"import editable_backend as backend; print(backend.{hook}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree / "shims")} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone, links as links, as git checks it out."""
    copy = tmp_path_factory.mktemp("clone")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PRODUCT, "shims"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from an sdist, as `python -m build` makes it."""
    scratch = tmp_path_factory.mktemp("dist")
    with tarfile.open(_hook(tree, "build_sdist", scratch)) as sdist:
        assert not [member.name for member in sdist if member.issym() or member.islnk()]
        sdist.extractall(scratch, filter="data")
    return _hook(scratch / "dlrmctl-0.1.0", "build_wheel", scratch)


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}


def test_a_wheel_holds_every_file_of_the_program_and_its_libraries_and_no_other(
    tree: Path, wheel: Path, tmp_path: Path
):
    library = {
        f"dlrmctl/{path.relative_to(ROOT)}": path for name in PRODUCT[1:] for path in (ROOT / name).rglob("*.py")
    }
    program = {str(path.relative_to(ROOT)): path for path in (ROOT / "dlrmctl").rglob("*.py")}
    expected = {name: path.read_bytes() for name, path in (program | library).items()}
    assert _contents(wheel) == expected
    assert _contents(_hook(tree, "build_wheel", tmp_path)) == expected
    assert not (tree / "build").exists()


@pytest.mark.slow
def test_a_wheel_trains_away_from_the_clone(wheel: Path, tmp_path: Path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)

    def run(*command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, "-P", *command], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import dlrmctl.data.reader as it; print(it.__file__)").startswith(str(site))
    assert "compress-embeddings" in run("-m", "dlrmctl", "--help")
    assert "NE" in run("-m", "dlrmctl", "train", "--dataset", "synthetic", "--synthetic-rows", "20000", "--nproc", "2")


@pytest.mark.parametrize(
    ("hook", "backend", "wanted"),
    [
        ("prepare_metadata_for_build_wheel", "cuda", "fbgemm-gpu==1.8.0"),
        ("prepare_metadata_for_build_wheel", "cpu", "fbgemm-gpu==1.8.0+cpu"),
        ("prepare_metadata_for_build_editable", "cuda", "fbgemm-gpu==1.8.0"),
        ("prepare_metadata_for_build_editable", "cpu", "fbgemm-gpu @ {tree}/shims/fbgemm-gpu-cpu"),
    ],
)
def test_only_an_editable_installation_asks_for_a_folder(
    hook: str, backend: str, wanted: str, tree: Path, tmp_path: Path
):
    metadata = _hook(tree, hook, tmp_path, DLRMCTL_BACKEND=backend) / "METADATA"
    required = message_from_string(metadata.read_text()).get_all("Requires-Dist") or []
    found = [line for line in required if line.startswith("fbgemm")]
    assert found == [wanted.format(tree=tree.as_uri())]


def test_the_stand_in_has_the_version_that_is_asked_for():
    project = (ROOT / "shims" / "fbgemm-gpu-cpu" / "pyproject.toml").read_text()
    assert 'version = "1.8.0+cpu"' in project
    assert 'dependencies = ["fbgemm-gpu-cpu==1.8.0"]' in project
