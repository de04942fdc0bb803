"""The rules of the house: who may import whom, and what a library never does."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("data", "embeddings", "models", "optim")
MOST_FILES = 16  # of a room


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _module(path: Path) -> str:
    """The installed name of a file: libraries are below `dlrmctl`, by links in that folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] in ("dlrmctl", "tests") else ("dlrmctl", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _product() -> dict[str, Path]:
    return {_module(path): path for package in ("dlrmctl", *LIBRARIES) for path in _files(package)}


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in _product() else node.module


def _imports_any(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return [name for name in _imports(path) if any(name == f or name.startswith(f + ".") for f in forbidden)]


def _room(module: str) -> str:
    """The folder of a module; what lies directly in a package is a room of its own."""
    path = _product()[module]
    folder = path.parent.relative_to(ROOT)
    return module if len(folder.parts) == 1 and path.name != "__init__.py" else str(folder)


def _circle(arrows: dict[str, set[str]]) -> list[str]:
    """The names that are left when whatever imports nothing more is taken away again and again."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_files_and_rooms_import_without_circles():
    files = {module: set(_imports(path)) & _product().keys() - {module} for module, path in _product().items()}
    assert _circle(files) == []
    rooms: dict[str, set[str]] = {}
    for module, targets in files.items():
        rooms.setdefault(_room(module), set()).update(room for room in map(_room, targets) if room != _room(module))
    assert _circle(rooms) == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_knows_neither_the_program_nor_another_library(library: str):
    for path in _files(library):
        ours = [name for name in _imports(path) if name.split(".")[0] in ("dlrmctl", "tests")]
        assert all(name.split(".")[:2] == ["dlrmctl", library] for name in ours), f"{path}: {ours}"


@pytest.mark.parametrize("package", ["dlrmctl", "tests", *LIBRARIES])
def test_a_library_has_one_name(package: str):
    """`import data` would load a second copy of every class beside `dlrmctl.data`."""
    for path in _files(package):
        assert not _imports_any(path, LIBRARIES), path


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_does_not_print_exit_or_read_the_environment(library: str):
    for path in _files(library):
        assert not _imports_any(path, ("typer", "rich", "argparse", "os.environ", "warnings", "logging")), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "exit", "quit", "input"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                dotted = f"{node.value.id}.{node.attr}"
                assert dotted not in {"os.environ", "os.getenv", "sys.exit"}, f"{path}:{node.lineno}"


def test_optimizers_need_torch_alone():
    for path in _files("optim"):
        outside = {name.split(".")[0] for name in _imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "dlrmctl"}, f"{path}: {outside}"


def test_data_knows_ranks_as_numbers():
    for path in _files("data"):
        assert not _imports_any(path, ("torch.distributed",)), path


def test_the_product_does_not_import_its_tests():
    for path in _product().values():
        assert not _imports_any(path, ("tests", "pytest")), path


def test_a_room_is_not_crowded_and_says_what_it_is_for():
    for folder in {path.parent for path in _product().values()}:
        names = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(names) <= MOST_FILES, f"{folder}: {len(names)} files"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_a_class_name_is_used_once():
    seen: dict[str, Path] = {}
    for path in _product().values():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in seen, f"{node.name} in {path} and {seen[node.name]}"
                seen[node.name] = path


@pytest.mark.parametrize("library", ["optim", "models", "data"])
def test_library_imports_without_fbgemm(library: str):
    modules = [_module(path) for path in _files(library)]
    program = (
        "import importlib, sys\n"
        "for name in ('torchrec', 'fbgemm_gpu'):\n    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
