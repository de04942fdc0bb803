"""Bundles with native code: `export --format aoti`, `Scorer(..., compiled=True)`."""

import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.serving import BundleError, Scorer
from dlrmctl.serving.bundle import MANIFEST, open_bundle, seal
from tests.dlrmctl.commands import in_process
from tests.dlrmctl.serving.rows import as_json, random_row


@pytest.fixture(scope="module")
def compiled(place: Path) -> Path:
    if not any(map(shutil.which, ("g++", os.environ.get("CXX", "")))):
        pytest.skip("needs a C++ compiler")
    out = place / "compiled.dlrm"
    done = in_process("export", place / "run", "-o", out, "--format", "aoti", "--json")
    assert done.status == 0, done.err
    assert done.json()["compiled"] is True
    assert not list(place.glob("*.partial"))
    return out


@pytest.mark.slow
def test_native_code_gives_the_scores_of_the_operators_at_any_size_of_batch(compiled: Path):
    plain, native = Scorer(compiled), Scorer(compiled, compiled=True)
    random_ = random.Random(3)
    rows = [as_json(random_row(random_), random_) for _ in range(300)]
    for size in (1, 2, 33, 300):
        # Sums in another order: some roundings of float32 in a logit of a few units.
        np.testing.assert_allclose(native.logits(rows[:size]), plain.logits(rows[:size]), rtol=0, atol=1e-5)
    bundle = open_bundle(compiled)
    assert set(bundle.content["compiled"]["weights"].values()) <= set(bundle.content["program"]["tensors"])  # kept once


@pytest.mark.slow
def test_code_for_another_machine_or_torch_is_refused_and_the_operators_still_score(compiled: Path, tmp_path: Path):
    machine = open_bundle(compiled).content["compiled"]["machine"]
    for key, value, wanted in (
        ("torch", "1.0", "compiled for torch 1.0"),
        ("machine", machine | {"system": "Plan 9"}, "compiled for Plan 9"),
        ("machine", machine | {"instructions": ["avx4096"]}, "a processor with avx4096"),
    ):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.dlrm"
        _change(compiled, file, key, value)
        with pytest.raises(BundleError, match=wanted):
            Scorer(file, compiled=True)
        Scorer(file)


def test_a_bundle_without_code_has_none_to_run(place: Path):
    with pytest.raises(BundleError, match="no compiled code"):
        Scorer(place / "model.dlrm", compiled=True)
    done = in_process("export", place / "run", "-o", place / "x.pt2", "--format", "aoti")
    assert done.status == 2
    assert "--format aoti adds code to a bundle" in done.err


def test_without_a_compiler_one_line_says_so(place: Path):
    cpp_builder = pytest.importorskip("torch._inductor.cpp_builder")
    from torch._inductor import config

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        done = in_process("export", place / "run", "-o", place / "x.dlrm", "--format", "aoti")
    cpp_builder.cpp_compiler_search.cache_clear()
    assert done.status == 2
    assert "error: --format aoti needs a C++ compiler" in done.err
    assert not (place / "x.dlrm").exists()


def _change(source: Path, out: Path, key: str, value: object) -> None:
    """Writes a bundle whose manifest says something else about its code."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == MANIFEST:
                manifest = json.loads(content)
                manifest["compiled"][key] = value
                content = seal(manifest)
            new.writestr(name, content)
