"""`Scorer` gives raw rows the probabilities of `dlrmctl predict`, with torch and NumPy alone."""

import json
import math
import random
import subprocess
import sys
import threading
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars as pl
import pytest
import torch

from dlrmctl.data.features.encoders import Hashing
from dlrmctl.data.schema import Schema, SparseFeature
from dlrmctl.serving import BundleError, RowError, Scorer
from dlrmctl.serving.batching import Batcher
from dlrmctl.serving.bundle import MOST_READ, open_bundle
from dlrmctl.serving.rows import array_reader, criteo_reader
from dlrmctl.serving.values import JsonNumber
from tests.dlrmctl.commands import in_process
from tests.dlrmctl.serving.rows import COLUMNS, as_json, random_row, write_rows

GOOD = {
    **{"age": 33, "price": 9.5, "visited": "2024-05-29T16:26:40", "joined": "2024-05-29", "score": 0.25},
    **{"user": "u1", "item": 1, "code": "1", "tags": ["a", "b"], "tag_weights": [1.0, 2.5]},
}


@pytest.fixture(scope="module")
def scorer(place: Path) -> Scorer:
    return Scorer(place / "model.dlrm")


def predicted(place: Path, rows: Path, out: Path) -> pl.DataFrame:
    done = in_process("predict", place / "run", rows, "-o", out, "--max-bad-rows", "10000")
    assert done.status == 0, done.err
    return pl.read_parquet(out)


def logit(probabilities: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(probabilities, dtype=np.float64)).logit()


def test_rows_of_text_and_of_json_get_the_scores_of_predict(place: Path, scorer: Scorer, tmp_path: Path):
    random_ = random.Random(1)
    texts = [random_row(random_) for _ in range(700)]
    write_rows(tmp_path / "texts.csv", 0)
    with (tmp_path / "texts.csv").open("w") as file:
        pl.DataFrame(texts, schema=dict.fromkeys(COLUMNS, pl.String)).write_csv(file, quote_style="always")
    objects = [as_json(row, random_) for row in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, objects)) + "\n")
    for rows, name in ((texts, "texts.csv"), (objects, "rows.jsonl")):
        wanted = predicted(place, tmp_path / name, tmp_path / f"{name}.parquet")
        assert wanted["problem"].null_count() == len(rows)
        scores = scorer.score(rows)
        # A sigmoid in float32 hides less than 2e-6 of a logit of these sizes.
        assert (logit(scores) - logit(wanted["probability"])).abs().max() < 4e-6
        apart = [float(scorer.score([row])[0]) for row in rows[:50]]
        assert apart == pytest.approx(scores[:50].tolist(), abs=1e-6)


def test_rows_that_predict_refuses_are_refused_by_row_and_column(place: Path, scorer: Scorer, tmp_path: Path):
    wrong = {
        "age": ("old", " 1", "1_000", "inf", "0x1"),
        "score": ("2e+38", "x"),
        "item": ("1.5", "abc", "1e30"),
        "visited": ("yesterday", "2024-13-01", "1e300"),
        "joined": ("12", "2024-02-30"),
        "tag_weights": ("1",),
    }
    cases = [(column, value) for column, values in wrong.items() for value in values]
    rows = [{**GOOD, column: value} for column, value in cases]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in [GOOD, *rows]) + "\n")
    found = predicted(place, tmp_path / "rows.jsonl", tmp_path / "p.parquet")
    assert found["probability"].is_null().to_list() == [False, *[True] * len(rows)]
    for (column, value), row in zip(cases, rows, strict=True):
        with pytest.raises(RowError, match="row 1, column") as caught:
            scorer.score([GOOD, row])
        assert (caught.value.row, caught.value.column) == (1, column)
        assert value in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {name: value for name, value in GOOD.items() if name != "user"},
            "row 0, column 'user': the column is missing",
        ),
        ({**{n: v for n, v in GOOD.items() if n != "user"}, "usr": 1}, "the row has 'usr'"),
        ({**GOOD, "user": {"id": 1}}, r"row 0, column 'user': \{'id': 1\} is not a string or a number"),
        ({**GOOD, "user": ["u1"]}, r"row 0, column 'user': \['u1'\] is not"),
        ({**GOOD, "tags": [["a"]]}, r"row 0, column 'tags': \['a'\] is not"),
        ({**GOOD, "tag_weights": [1]}, "row 0, column 'tag_weights': 1 weights for 2 values"),
        ({**GOOD, "tag_weights": "1|x"}, "row 0, column 'tag_weights': 'x' is not a number"),
        ({**GOOD, "tag_weights": [1, None]}, "row 0, column 'tag_weights': None is not a finite number"),
        ({**GOOD, "age": [1]}, r"row 0, column 'age': \[1\] is not a number"),
        ({**GOOD, "visited": {}}, r"row 0, column 'visited': \{\} is not seconds since 1970"),
        ("user", "row 0: 'user' is not an object"),
        ({**GOOD, "visited": JsonNumber("1" * 5000)}, "row 0, column 'visited': '11.*... is not seconds since 1970"),
        ({**GOOD, "user": 10**5000}, "row 0, column 'user': int of thousands of digits is too large"),
    ],
)
def test_a_wrong_row_is_an_error_that_says_where(scorer: Scorer, row: Any, message: str):
    with pytest.raises(RowError, match=message):
        scorer.score([row])


def test_values_of_python_are_read_like_their_texts(scorer: Scorer):
    moment = datetime(2024, 5, 29, 16, 26, 40)
    same = [
        GOOD,
        {**GOOD, "visited": moment, "joined": date(2024, 5, 29), "item": np.int64(1), "age": np.float32(33)},
        {**GOOD, "visited": 1717000000, "tags": ("a", "b"), "item": 1.0, "price": np.float64(9.5), "unknown": object()},
        {**GOOD, "tags": "a|b", "age": "33.0", "item": True, "tag_weights": "1.0|2.5"},
        {**GOOD, "age": Decimal("33.0"), "price": Decimal("9.50"), "item": Decimal("1.0"), "score": Decimal("0.25")},
        {**GOOD, "visited": np.datetime64(moment, "ns"), "joined": np.datetime64("2024-05-29")},
        {**GOOD, "visited": Decimal(1717000000)},
    ]
    assert len(set(scorer.score(same).tolist())) == 1
    times = [{**GOOD, "user": user} for user in ("2024-05-01", date(2024, 5, 1), np.datetime64("2024-05-01"))]
    assert len(set(scorer.score(times).tolist())) == 1
    assert scorer.score(times[:1]) != scorer.score([GOOD])
    missing = dict.fromkeys(GOOD)
    nothing = [None, math.nan, np.float32("nan"), Decimal("NaN"), np.datetime64("NaT"), pandas.NaT, pandas.NA]
    assert len(set(scorer.score([dict.fromkeys(GOOD, value) for value in nothing]).tolist())) == 1
    assert scorer.score([dict.fromkeys(GOOD, pandas.NA)]) == scorer.score([missing]) != scorer.score([GOOD])
    assert scorer.score([]).shape == (0,)


def test_a_request_that_breaks_the_reader_does_not_break_those_beside_it(scorer: Scorer):
    class Broken(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise RuntimeError("a bug")

    found: dict[int, Any] = {}
    sizes: list[int] = []
    batcher = Batcher(scorer, found.update, most_rows=1000, observe=lambda _, requests: sizes.append(requests))
    for number in range(200):
        batcher.submit([Broken(GOOD) if number % 3 == 0 else GOOD], number)
    batcher.close()
    assert max(sizes) > 1
    wanted = scorer.score([GOOD])
    for number, answer in found.items():
        assert str(answer) == "a bug" if number % 3 == 0 else answer == pytest.approx(wanted, abs=1e-6)
    assert len(found) == 200


def test_what_was_scored_before_does_not_change_what_is_refused():
    schema = Schema((), (SparseFeature("c", 100),))
    criteo = criteo_reader(schema, {"c": Hashing(100, 0)})
    arrays = array_reader(schema, {"c": Hashing(100, 0)}, {"c": np.dtype("<u8")})
    for reader, good, wrong in ((criteo, "12", JsonNumber("12")), (arrays, JsonNumber("12"), "12")):
        first = reader.read([{"c": good}]).ids_BF
        with pytest.raises(RowError, match="row 0, column 'c': '12' is not"):
            reader.read([{"c": wrong}])
        assert reader.read([{"c": good}]).ids_BF == first


def test_threads_get_the_scores_of_one_thread(scorer: Scorer):
    random_ = random.Random(2)
    rows = [random_row(random_) for _ in range(400)]
    wanted, found = scorer.score(rows), {}
    fresh = Scorer(scorer.path)

    def run(number: int) -> None:
        found[number] = np.concatenate([fresh.score(rows[start : start + 7]) for start in range(0, 400, 7)])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for scores in found.values():
        np.testing.assert_allclose(scores, wanted, atol=1e-6)  # other batches, other roundings


def test_a_process_with_torch_loads_nothing_else(place: Path):
    code = f"""
import sys, torch
from dlrmctl.serving import Scorer
scorer = Scorer({str(place / "model.dlrm")!r})
scorer.score([{GOOD!r}])
heavy = ("torchrec", "fbgemm_gpu", "typer", "rich", "polars", "pyarrow", "fastapi", "torch._dynamo", "sympy")
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mapped_bundle_gives_the_same_scores(place: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch):
    assert open_bundle.__kwdefaults__ is not None
    monkeypatch.setitem(open_bundle.__kwdefaults__, "map_above", 0)
    mapped = Scorer(place / "model.dlrm")
    assert mapped.mapped
    assert not scorer.mapped
    assert mapped.score([GOOD]) == scorer.score([GOOD])


@pytest.mark.parametrize("map_above", [0, MOST_READ])
def test_a_damaged_bundle_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, map_above: int):
    assert open_bundle.__kwdefaults__ is not None
    monkeypatch.setitem(open_bundle.__kwdefaults__, "map_above", map_above)
    content = (place / "model.dlrm").read_bytes()
    random_ = random.Random(3)
    file = tmp_path / "m.dlrm"
    refused, wanted = 0, Scorer(place / "model.dlrm").score([GOOD])
    for at in (random_.randrange(len(content)) for _ in range(30)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
        try:  # in the padding between members a change does no harm
            scores = Scorer(file).score([GOOD])
        except BundleError:
            refused += 1
        else:
            np.testing.assert_array_equal(scores, wanted)
    assert refused > 15
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="cut short"):
        Scorer(file)
    with pytest.raises(BundleError, match="No such file"):
        Scorer(tmp_path / "none.dlrm")
