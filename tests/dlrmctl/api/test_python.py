"""Python functions give what the commands give, and their page works as it is written."""

import inspect
import io
import json
import re
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import dlrmctl
from dlrmctl.cli.data import prepare as command
from tests.dlrmctl.commands import in_process
from tests.dlrmctl.small_tables import SCHEMA, rows_of_a_table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"
SMALL = {"bottom_mlp": (8,), "top_mlp": (8, 1), "dim": 8, "batch_size": 64, "epochs": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    file = place / "rows.csv"
    file.write_text(rows_of_a_table(3000))
    return file


@pytest.fixture(scope="module")
def model(place: Path, rows: Path) -> dlrmctl.TrainedModel:
    store = dlrmctl.prepare(rows, place / "store", schema=tomllib.loads(SCHEMA))
    assert store.report.rows == 3000
    with redirect_stderr(io.StringIO()) as progress:
        run = dlrmctl.train(data=store, run_dir=place / "run", **SMALL)
    assert "step" in progress.getvalue()
    assert json.loads((place / "run" / "results.json").read_text())["test"]["auc"] == run.test["auc"]
    assert run.config.embeddings.dim == 8
    return dlrmctl.load(run)


def test_predictions_of_every_kind_of_frame_are_those_of_the_command(
    model: dlrmctl.TrainedModel, rows: Path, place: Path
):
    assert in_process("predict", place / "run", rows, "--labelled", "-o", place / "p.parquet").status == 0
    expected = pl.read_parquet(place / "p.parquet")["probability"].to_numpy()
    texts = pl.read_csv(rows, infer_schema=False)
    typed = pl.read_csv(rows).with_columns(pl.col("tags").str.split("|"))
    with_gaps = [{name: value for name, value in row.items() if value is not None} for row in typed.to_dicts()]
    nullable = typed.to_pandas().convert_dtypes().to_dict("records")  # their missing values are pandas' own
    for frame in (
        *(texts, typed, typed.to_arrow(), typed.to_pandas(), texts.to_dict(as_series=False), with_gaps, nullable),
    ):
        np.testing.assert_array_equal(model.predict(frame), expected)
    for none in (typed.head(0), []):
        assert model.predict(none).shape == (0,)


def test_metrics_are_those_of_the_command(model: dlrmctl.TrainedModel, place: Path):
    done = in_process("evaluate", place / "run", "--split", "validation", "--json")
    assert model.evaluate("validation") == done.json()["validation"]


def test_vectors_are_what_the_model_adds_up(model: dlrmctl.TrainedModel):
    known, unknown = model.embedding("user", ["u1", "u2"]), model.embedding("user", ["nobody", "no one"])
    assert known.shape == (2, 8)
    assert not np.array_equal(known[0], known[1])
    np.testing.assert_array_equal(unknown[0], unknown[1])
    np.testing.assert_array_equal(model.embedding("item", 7), model.embedding("item", "7"))


def test_neighbors_are_sorted_by_the_cosine_of_their_vectors(model: dlrmctl.TrainedModel):
    own = model.embedding("user", "u1")
    found = model.nearest("user", "u1", k=5)
    assert [n.similarity for n in found] == sorted((n.similarity for n in found), reverse=True)
    for neighbor in found:
        other = model.embedding("user", neighbor.value)
        cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
        assert neighbor.similarity == pytest.approx(cosine, abs=1e-6)  # sums in float32
    assert model.nearest("user", own, k=1)[0].value == "u1"
    assert len(model.nearest("user", "u1", k=10**6)) == 59


def test_neighbors_by_faiss_are_those_of_the_whole_table(place: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    indexed = dlrmctl.load(place / "run")
    wanted = {}
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "faiss", None)
        plain = dlrmctl.load(place / "run")
        for value in ("u1", "u2", indexed.embedding("user", "u3"), "nobody"):
            for k in (1, 7, 10**6):
                wanted[str(value), k] = plain.nearest("user", value, k=k)
    for value in ("u1", "u2", indexed.embedding("user", "u3"), "nobody"):
        for k in (1, 7, 10**6):
            found = indexed.nearest("user", value, k=k)
            assert [n.value for n in found] == [n.value for n in wanted[str(value), k]]
            # Sums of 8 products in float32, in another order.
            assert [n.similarity for n in found] == pytest.approx(
                [n.similarity for n in wanted[str(value), k]], abs=1e-6
            )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict([{"age": 1}]), "the rows have no column 'price'"),
        (lambda m: m.predict(3), "not int"),
        (lambda m: m.nearest("usr", "u1"), "no sparse feature 'usr'"),
        (lambda m: m.nearest("user", [1.0, 2.0]), "the vector has 2 numbers, those of user have 8"),
        (lambda m: m.nearest("user", "u1", k=0), "k = 0 must be at least 1"),
        (lambda m: dlrmctl.train(batch=3), "batch is not a setting"),
        (lambda m: dlrmctl.load("nowhere"), "nowhere"),
        (lambda m: dlrmctl.prepare([{"a": 1}], "store"), "a frame needs a schema"),
        (lambda m: dlrmctl.prepare("x.csv"), "needs a directory"),
        (
            lambda m: dlrmctl.prepare([{"y": 1}], "store", schema={"label": "y", "sparse": ["z"]}),
            "the frame: no column",
        ),
    ],
)
def test_mistakes_are_errors_of_one_line(model: dlrmctl.TrainedModel, call, message: str):
    with pytest.raises((dlrmctl.UserError, dlrmctl.DataError), match=re.escape(message)) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_wrong_value_is_named_with_its_row(model: dlrmctl.TrainedModel):
    rows = [{"age": 1, "price": 2, "user": "u1", "item": 3, "tags": None}, {"age": "old", "price": 1}]
    with pytest.raises(dlrmctl.UserError, match=r"row 1 of the rows.*: age is 'old', expected a number"):
        model.predict(rows)


def test_prepare_has_the_options_of_the_command():
    ours, theirs = inspect.signature(dlrmctl.prepare).parameters, inspect.signature(command).parameters
    assert set(ours) - {"format"} == set(theirs) - {"json"}


def test_importing_the_package_loads_nothing():
    code = "import dlrmctl, sys; print([m for m in ('torch', 'numpy', 'polars', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_examples_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{n % 3 // 2},{n % 11 / 2},u{n % 50},i{n % 7}" for n in range(2000)]
    Path("clicks.csv").write_text("\n".join(["clicked,price,user,item", *lines]) + "\n")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, {})
