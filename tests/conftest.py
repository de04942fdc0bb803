"""Settings that must stand before torch is loaded."""

import os
import sys

import hypothesis
import pytest
from _pytest.mark.expression import Expression

from tests.servers import https, s3, served, sftp  # noqa: F401 (fixtures)

# Tests run side by side: threads of one that wait busily would hold up the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")

# No test measures a time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Files that take longest. They begin first, so that no process is left alone with one of them at the end.
_LONGEST = (
    *("tests/test_readme.py", "tests/dlrmctl/training/", "tests/dlrmctl/rundir/", "tests/dlrmctl/compress/"),
    *("tests/dlrmctl/cli/", "tests/dlrmctl/bench/", "tests/dlrmctl/doctor/", "tests/test_shadowing.py"),
)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """What a test draws from torch without a seed depends neither on chance nor on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, unless only tests with the marker `gpu` were asked for: `--device auto` would choose them."""
    marks = config.getoption("markexpr") or "not slow"
    chosen = Expression.compile(marks)
    if not chosen.evaluate(lambda name, **_: name == "gpu") or chosen.evaluate(lambda name, **_: False):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
