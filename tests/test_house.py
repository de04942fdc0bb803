"""The rules of the house: who may import whom, and what a library never does."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("data", "embeddings", "models", "optim")
MOST_LINES = 250


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports_any(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return [name for name in _imports(path) if any(name == f or name.startswith(f + ".") for f in forbidden)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_knows_neither_the_program_nor_another_library(library: str):
    others = tuple(name for name in (*LIBRARIES, "dlrmctl", "tests") if name != library)
    for path in _files(library):
        assert not _imports_any(path, others), path


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_does_not_print_exit_or_read_the_environment(library: str):
    for path in _files(library):
        assert not _imports_any(path, ("typer", "rich", "argparse", "os.environ")), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "exit", "quit", "input"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                dotted = f"{node.value.id}.{node.attr}"
                assert dotted not in {"os.environ", "os.getenv", "sys.exit"}, f"{path}:{node.lineno}"


def test_optimizers_need_torch_alone():
    for path in _files("optim"):
        outside = {name.split(".")[0] for name in _imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "optim"}, f"{path}: {outside}"


def test_data_knows_ranks_as_numbers():
    for path in _files("data"):
        assert not _imports_any(path, ("torch.distributed",)), path


def test_the_product_does_not_import_its_tests():
    for package in ("dlrmctl", *LIBRARIES):
        for path in _files(package):
            assert not _imports_any(path, ("tests", "pytest")), path


def test_files_have_one_subject():
    for package in ("dlrmctl", *LIBRARIES):
        for path in _files(package):
            assert len(path.read_text().splitlines()) <= MOST_LINES, path


@pytest.mark.parametrize("library", ["optim", "models", "data"])
def test_library_imports_without_fbgemm(library: str):
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in _files(library)]
    program = (
        "import importlib, sys\n"
        "for name in ('torchrec', 'fbgemm_gpu'):\n    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
