"""Tables by settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from dlrmctl.assembly.tables import feature_tables, summary, unsorted_heads
from dlrmctl.data.schema import Schema
from dlrmctl.data.store.store import Store
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.embeddings import tables as library
from dlrmctl.embeddings import words
from dlrmctl.embeddings.choose import num_parameters
from dlrmctl.errors import UserError
from dlrmctl.rundir.state import same_shape
from dlrmctl.settings.config import Config, resolve
from tests.dlrmctl.commands import SMALL, in_process

SCHEMA: Schema = Synthetic(0, 1, 1, 1, cardinalities=(3, 400, 5000, 90_000, 300_000)).schema
NAMES = [feature.name for feature in SCHEMA.sparse]


def _config(changes: dict, **flags: str) -> Config:
    return resolve({"embeddings": {"qr_threshold": 200, "tables": changes}}, flags)


def _tables(changes: dict, **flags: str) -> list[library.FeatureTable]:
    return feature_tables(_config(changes, **flags), SCHEMA)


def test_settings_refuse_the_operations_that_the_library_does_not_have():
    for kind in words.EMBEDDINGS:
        for operation in words.OPERATIONS:
            flags = {"embedding": kind, "operation": operation, "dim": "48", "bottom_mlp": "48", "tail": "qr"}
            possible = operation in words.OPERATIONS_OF.get(kind, words.OPERATIONS)
            try:
                _tables({}, **flags)
            except UserError:
                assert not possible
            else:
                assert possible


def test_every_setting_reaches_the_tables():
    assert [t.embedding for t in _tables({}, qr_threshold="1000")] == ["full", "full", "qr", "qr", "qr"]
    assert _tables({}, qr_layout="quotient", collisions="7", operation="add")[3] == library.FeatureTable(
        NAMES[3], 90_002, 1, "qr", 7, "add", "quotient"
    )
    assert _tables({}, embedding="crt", ways="4")[2].ways == 4
    head = _tables({}, embedding="head", head_share="0.5", collisions="10", tail="qr")[3]
    # A tenth of the rows is 9001, half of them for the head; the tail's 85,502 ids share the other 4501.
    assert (head.embedding, head.head, head.tail, head.collisions) == ("head", 4500, "qr", 19)


def test_a_pattern_changes_what_it_names_later_ones_more_and_an_exact_name_last():
    changes = {
        NAMES[3]: {"collisions": 9},
        "*": {"embedding": "hash", "collisions": 20},
        f"{NAMES[4][:-1]}?": {"collisions": 30},
    }
    chosen = _tables(changes)
    assert [t.embedding for t in chosen] == ["full", *["hash"] * 4]
    assert [t.collisions for t in chosen[1:]] == [30, 30, 9, 30]


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r'embeddings.tables."categ3" matches no sparse feature of the data') as caught:
        _tables({"categ3": {"collisions": 4}})
    assert caught.value.hint
    assert caught.value.hint.startswith("the features are cat_3")


@pytest.mark.parametrize("kind", ["hash", "qr", "kway", "crt", "head", "double-hash"])
@pytest.mark.parametrize("ratio", [1.7, 4, 30])
def test_a_ratio_is_reached_and_hardly_exceeded(kind: str, ratio: float):
    chosen = _tables({}, embedding=kind, compress_ratio=f"{ratio}x")
    full = sum(t.rows for t in chosen) * 16
    assert ratio <= full / num_parameters(chosen, 16)
    # The largest table has 76 % of the rows. With c collisions instead of c + 1 it takes rows / c / (c + 1) more, and c
    # is about the ratio. Coprime moduli cannot follow so closely: from 30 = 6 x 5 collisions they go to 42 = 6 x 7.
    assert full / num_parameters(chosen, 16) < ratio * (1.1 if kind == "crt" and ratio == 30 else 1 + 0.76 / ratio)
    assert chosen[0].embedding == "full"


def test_collisions_of_a_table_stay_and_the_others_make_up_for_it():
    chosen = _tables({NAMES[4]: {"collisions": 2}}, embedding="hash", compress_ratio="2.5")
    assert chosen[4].collisions == 2
    assert chosen[3].collisions > 2
    assert 2.5 <= 395_413 * 16 / num_parameters(chosen, 16) < 2.6


def test_a_ratio_out_of_reach_says_the_best():
    with pytest.raises(UserError, match="tables cannot be 1000 times smaller; with these settings, ") as caught:
        _tables({}, compress_ratio="1000")
    best = float(caught.value.message.split(", ")[-1].split()[0])
    reached = _tables({}, compress_ratio=str(best - 0.1))
    assert best - 0.1 <= 395_413 * 16 / num_parameters(reached, 16) <= best + 0.01
    with pytest.raises(UserError, match=r"with these settings, 3\.00 times is the most"):
        _tables({"*": {"collisions": 3}, NAMES[0]: {"qr_threshold": 0}}, embedding="hash", compress_ratio="3.1")
    with pytest.raises(UserError, match=r"with these settings, 1\.00 times is the most") as none_is_large:
        _tables({}, embedding="hash", compress_ratio="3", qr_threshold="400000")
    assert str(none_is_large.value.hint).startswith("a lower --qr-threshold, such as 200,")


def test_widths_that_no_kernel_has_are_refused_by_name():
    with pytest.raises(UserError, match=rf"feature {NAMES[2]}: .* 3 parts of dim/3=.* multiple of 12 instead of 16"):
        _tables({NAMES[2]: {"embedding": "kway", "operation": "concat"}})


def test_the_summary_says_how_much_smaller():
    config = _config({}, embedding="hash")
    # 402 / 4 + 5002 / 4 + 90,002 / 4 + 300,002 / 4, rounded up, + 5 = 98,859 rows of 395,413.
    assert (
        summary(feature_tables(config, SCHEMA), config.embeddings)
        == "6,326,608 weights of embeddings in 1,581,744, 4.00x smaller: 1 full, 4 hash"
    )
    config = _config({}, embedding="kway")
    assert summary(feature_tables(config, SCHEMA), config.embeddings).endswith("1 full, 4 kway mult")


def test_the_summary_says_why_no_table_is_smaller():
    config = _config({}, qr_threshold="400000")
    line = "6,326,608 weights of embeddings, all tables full: none has 400,000 rows (--qr-threshold)"
    assert summary(feature_tables(config, SCHEMA), config.embeddings) == line
    # Here nobody asked for smaller ones, or a single table is.
    config = _config({}, qr_threshold="400000", embedding="full")
    assert summary(feature_tables(config, SCHEMA), config.embeddings).endswith("1.00x smaller: 5 full")
    config = _config({NAMES[4]: {"qr_threshold": 0}}, qr_threshold="400000")
    assert summary(feature_tables(config, SCHEMA), config.embeddings).endswith("4 full, 1 qr mult")


def test_without_settings_tables_below_a_hundred_thousand_rows_stay_full():
    assert [t.embedding for t in feature_tables(resolve({}, {}), SCHEMA)] == [*["full"] * 4, "qr"]


@pytest.mark.parametrize(
    "change",
    [{"ways": "4"}, {"qr_layout": "quotient"}, {"head_share": "0.5"}, {"tail": "qr"}, {"compress_ratio": "9"}],
)
def test_a_checkpoint_is_not_gone_on_with_by_other_tables(change: dict[str, str]):
    saved, [name] = resolve({}, {}).to_dict(), change
    with pytest.raises(UserError, match=rf"was trained with embeddings.{name} = .*, not "):
        same_shape(resolve({}, change), saved, Path("run"))


def test_a_checkpoint_is_not_gone_on_with_by_other_single_tables():
    ours = resolve({"embeddings": {"tables": {"a*": {"ways": 2}, "*b": {"ways": 3}}}}, {})
    same_shape(ours, ours.to_dict(), Path("run"))
    for others in ({}, {"a*": {"ways": 2}}, dict(reversed(ours.tables.items()))):
        with pytest.raises(UserError, match=r"was trained with embeddings.tables = "):
            same_shape(replace(ours, tables=others), ours.to_dict(), Path("run"))


def test_checkpoints_from_before_a_setting_had_its_default():
    saved = Config().to_dict()
    for name in ("qr_layout", "ways", "head_share", "tail"):
        del saved["embeddings"][name]
    same_shape(resolve({}, {"qr_layout": "quotient"}), saved, Path("run"), sections=["embeddings"])
    with pytest.raises(UserError, match=r"was trained with embeddings\.qr_layout = quotient"):
        same_shape(resolve({}, {}), saved, Path("run"), sections=["embeddings"])


RUN_TOML = """
[embeddings]
embedding = "kway"
operation = "features"
compress_ratio = 5
[embeddings.tables."cat_2*"]
embedding = "head"
operation = "mult"
tail = "qr"
[embeddings.tables.%s]
embedding = "qr"
operation = "path"
"""


def test_a_run_with_tables_of_many_kinds_trains_and_is_scored_again(tmp_path: Path):
    (tmp_path / "settings.toml").write_text(RUN_TOML % "cat_19")
    run_dir = tmp_path / "run"
    common = [*SMALL, "--synthetic-rows", "30000", "--batch-size", "4096", "--max-steps", "6", "--print-plan"]
    done = in_process("train", *common, "--config", tmp_path / "settings.toml", "--run-dir", run_dir, "--json")
    assert done.status == 0, done.err
    assert "16 full, 2 kway features, 1 qr path, 7 head mult" in done.err
    assert "warning: the ids of cat_20 and 6 more are not sorted by frequency" in done.err
    for table in ("cat_17@3", "cat_19@r", "cat_25@h", "cat_25@q"):
        assert table in done.err
    again = in_process("evaluate", run_dir, "--json")
    assert again.status == 0, again.err
    assert again.json()["test"]["ne"] == done.json()["test"]["ne"]


def test_a_section_for_no_table_is_one_line(tmp_path: Path):
    (tmp_path / "settings.toml").write_text(RUN_TOML % "cat19")
    done = in_process("train", *SMALL, "--config", tmp_path / "settings.toml", "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert done.err.splitlines() == [
        'error: embeddings.tables."cat19" matches no sparse feature of the data',
        "hint: the features are cat_19, cat_9, cat_1",
    ]


def test_only_ids_sorted_by_frequency_have_a_head(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    assert in_process("data", "synthesize", "--rows", "2000", "--out", raw).status == 0
    for kind, warnings in (("vocabulary", 0), ("hash", 1)):
        store = tmp_path / kind
        done = in_process("prepare", "criteo", raw, "-o", store, "--ids", kind)
        assert done.status == 0, done.err
        source = Store(store)
        tables = feature_tables(resolve({}, {"embedding": "head", "qr_threshold": "9"}), source.schema)
        assert any(table.embedding == "head" for table in tables)
        assert len(unsorted_heads(tables, source)) == warnings


def test_a_column_is_set_by_its_own_name_also_if_that_reads_as_a_pattern():
    features = [replace(SCHEMA.sparse[4], name=name) for name in ("cat[1]", "cat1", "what?", "whats", "*")]
    schema = replace(SCHEMA, sparse=tuple(features))
    changes = {
        "cat[1]": {"collisions": 9},
        "cat*": {"collisions": 7},
        "what?": {"collisions": 5},
        "*": {"collisions": 3},
    }
    config = resolve({"embeddings": {"tables": changes}}, {})
    assert [table.collisions for table in feature_tables(config, schema)] == [9, 7, 5, 4, 3]
    with pytest.raises(UserError, match="matches no sparse feature"):
        feature_tables(resolve({"embeddings": {"tables": {"[x]": {"collisions": 2}}}}, {}), schema)
