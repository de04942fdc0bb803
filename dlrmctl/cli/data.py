"""The command `dlrmctl prepare` and the group `dlrmctl data`."""

import re
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import AsJson, option
from dlrmctl.console.console import notice, print_json
from dlrmctl.datasets.table_example import EXAMPLE
from dlrmctl.errors import UserError
from dlrmctl.settings.config import LARGEST_SEED, MOST_SYNTHETIC_ROWS, SYNTHETIC_SIZES
from dlrmctl.settings.parse import one_of, share, whole_number
from dlrmctl.settings.synonyms import nearest, same_word
from dlrmctl.settings.typed import refuse_missing_store

FORMATS = ("criteo", "npy")
_IDS = {"criteo": ("vocabulary", "hash"), "npy": ("rows", "vocabulary", "hash"), "table": ("vocabulary", "hash")}
_IDS_PANEL, _ROWS_PANEL, _SPLITS_PANEL = "Ids", "Rows", "Splits"
_SPLITS = ("order", "last-file", "random", "time:COLUMN", "group:COLUMN")
data_app = typer.Typer(help="Show and generate data.", no_args_is_help=True)


def prepare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the store to this directory.", metavar="DIR")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, patterns and ranges such as 'day_{0..22}.gz', oldest first.",
            metavar="[criteo|npy] SRC...",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="Read your own tables, described by this file.", metavar="FILE.toml"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Name of the data, used in the names of its runs. Default: the name of the directory.",
            metavar="NAME",
        ),
    ] = None,
    ids: Annotated[
        str | None,
        option(
            "Map values to rows by a vocabulary or by hashing; npy can also use them as rows. "
            "\\[default: vocabulary; npy: rows]",
            "vocabulary|hash|rows",
            _IDS_PANEL,
        ),
    ] = None,
    min_count: Annotated[
        str | None, option("Vocabulary: map rarer values to row 1. \\[default: 2]", "N", _IDS_PANEL)
    ] = None,
    max_rows_per_table: Annotated[
        str | None, option("Vocabulary: keep only the most frequent values.", "N", _IDS_PANEL)
    ] = None,
    vocabulary_from: Annotated[Path | None, option("Vocabulary: use that of this store.", "STORE", _IDS_PANEL)] = None,
    extend: Annotated[
        Path | None,
        option("Keep the ids of this store, and add rows for new values. Counts include its own.", "STORE", _IDS_PANEL),
    ] = None,
    keep_rare: Annotated[
        bool,
        typer.Option(
            "--keep-rare",
            help="Vocabulary: keep the counts of rare values for --extend, which can then give them rows.",
            rich_help_panel=_IDS_PANEL,
        ),
    ] = False,
    hash_rows: Annotated[
        str | None, option("Hashing: number of rows per table. \\[default: 1000000]", "N", _IDS_PANEL)
    ] = None,
    split: Annotated[
        str | None,
        option(
            "Divide the rows by their order, the last file, at random, or by a column of times or groups. "
            "\\[default: order]",
            "|".join(_SPLITS),
            _SPLITS_PANEL,
        ),
    ] = None,
    fractions: Annotated[
        str | None,
        option(
            "Fractions of the training, validation and test splits. \\[default: 6/7, 1/14, 1/14]",
            "F,F,F",
            _SPLITS_PANEL,
        ),
    ] = None,
    until: Annotated[
        str | None,
        option(
            "time: end training before the first time and validation before the second, "
            "for example 2026-01-20,2026-01-25.",
            "TIME,TIME",
            _SPLITS_PANEL,
        ),
    ] = None,
    train: Annotated[
        list[str] | None,
        option("Files of the training split; repeatable. Instead of SRC.", "SRC", _SPLITS_PANEL),
    ] = None,
    validation: Annotated[
        list[str] | None, option("Files of the validation split; repeatable.", "SRC", _SPLITS_PANEL)
    ] = None,
    test: Annotated[list[str] | None, option("Files of the test split; repeatable.", "SRC", _SPLITS_PANEL)] = None,
    limit: Annotated[str | None, option("Read only the first N good rows, for example 5M.", "N", _ROWS_PANEL)] = None,
    sample_negatives: Annotated[
        str | None, option("Keep this fraction of the training rows labelled 0.", "RATE", _ROWS_PANEL)
    ] = None,
    seed: Annotated[
        str | None,
        option("Seed of --split random, --split group and --sample-negatives. \\[default: 0]", "N", _ROWS_PANEL),
    ] = None,
    max_bad_rows: Annotated[
        str | None,
        option("Stop if more rows than this are bad. \\[default: 1 % and 100]", "N", _ROWS_PANEL),
    ] = None,
    json: AsJson = False,
) -> None:
    """Prepare raw data for `dlrmctl train --data DIR`.

    \b
    dlrmctl prepare criteo train.txt -o criteo
    dlrmctl prepare criteo 'day_{0..23}.gz' -o criteo --split last-file
    dlrmctl prepare --schema my.toml 'clicks-*.parquet' -o clicks
    dlrmctl prepare --schema my.toml clicks.csv -o clicks --split time:clicked_at

    criteo: Criteo click logs (Kaggle or 1TB), as plain text, .gz, .zip or .tar.gz, or their directory.

    npy: NAME_dense.npy, NAME_labels.npy and NAME_sparse.npy or NAME_sparse_multi_hot.npz.

    --schema: your own CSV, TSV, JSONL, Parquet or Arrow files. The schema describes their columns:
    """
    own = _own_files({"--train": train, "--validation": validation, "--test": test})
    if own and (split or fractions or until or limit):
        other = "--split" if split else "--fractions" if fractions else "--until" if until else "--limit"
        raise UserError(f"--train and {other} contradict: each split has its own files")
    format, files = format_and_files(sources or [], schema, own_files=own is not None)
    rule = _split_of(split or "order", fractions, until)
    drawn = rule["name"].startswith(("random", "group"))
    chosen = one_of("--ids", ids or _IDS[format][0], _IDS[format])
    for flag, value, wanted in (
        ("--min-count", min_count, "vocabulary"),
        ("--max-rows-per-table", max_rows_per_table, "vocabulary"),
        ("--vocabulary-from", vocabulary_from, "vocabulary"),
        ("--keep-rare", keep_rare or None, "vocabulary"),
        ("--hash-rows", hash_rows, "hash"),
    ):
        if value is not None and chosen != wanted:
            raise UserError(f"{flag} is for --ids {wanted}, not for {chosen}")
    if seed is not None and sample_negatives is None and not drawn:
        raise UserError("--seed needs --sample-negatives, or --split random or group: nothing else is random")
    if vocabulary_from is not None and min_count is not None:
        raise UserError("--min-count and --vocabulary-from contradict: the vocabulary is fixed")
    for flag, value in (("--vocabulary-from", vocabulary_from), ("--hash-rows", hash_rows)):
        if extend is not None and value is not None:
            raise UserError(f"{flag} and --extend contradict: --extend takes ids from its store", "omit one of the two")
    for store in (vocabulary_from, extend):
        if store is not None:
            refuse_missing_store(store)
    if extend is not None and ids is not None:
        _refuse_other_ids(extend, chosen)
    options = {
        "min_count": _limit("--min-count", min_count, at_least=1),
        "max_rows_per_table": _limit("--max-rows-per-table", max_rows_per_table, at_least=2),
        "vocabulary_from": vocabulary_from,
        "extend": extend,
        "keep_rare": keep_rare,
        "hash_rows": whole_number("--hash-rows", hash_rows or "1000000", at_least=2, at_most=1 << 32)
        if chosen == "hash" and extend is None
        else None,
        "split": {**rule, **({"seed": whole_number("--seed", seed or "0", at_least=0)} if drawn else {})},
        "limit": _limit("--limit", limit, at_least=1),
        "sample_negatives": share("--sample-negatives", sample_negatives or "1", zero=False, one=True),
        "seed": whole_number("--seed", seed or "0", at_least=0),
        "max_bad_rows": _limit("--max-bad-rows", max_bad_rows, at_least=0),
        "name": name,
    }
    notice("loading")
    from dlrmctl.datasets.prepare import prepare as run

    run(format, own or files, out, schema=schema, ids_are_rows=chosen == "rows", options=options, as_json=json)


# The example schema is shown as it is; its brackets would be read as markup.
prepare.__doc__ = f"{cleandoc(prepare.__doc__ or '')}\n\n\b\n" + EXAMPLE.replace("\n\n", "\n\n\b\n").replace("[", "\\[")


def _refuse_other_ids(extend: Path, ids: str) -> None:
    """Refuses --ids that a store to extend does not have."""
    from dlrmctl.data.store.manifest import read_manifest

    made = read_manifest(extend).preparation
    schemes = set() if made is None else {column.scheme for column in made.columns} - {"buckets"}
    if schemes and ids not in schemes:
        theirs = " and ".join(sorted(schemes))
        raise UserError(f"--ids = {ids} and --extend contradict: ids of {extend} are {theirs}", "omit --ids")


def _own_files(given: dict[str, list[str] | None]) -> tuple[list[str], ...] | None:
    """Returns the files of each split; None if no split has files of its own.

    Raises:
        UserError: if only some of them have.
    """
    if not any(given.values()):
        return None
    absent = [flag for flag, files in given.items() if not files]
    if absent:
        there = next(flag for flag, files in given.items() if files)
        raise UserError(f"{there} without {absent[0]}", "give files for all of --train, --validation and --test")
    return tuple(files or [] for files in given.values())


def _split_of(text: str, fractions: str | None, until: str | None) -> dict[str, Any]:
    """Reads the rule of the splits: its name, fractions and times at which splits end, as `Split.parse` takes them.

    Raises:
        UserError: if they are not such, or contradict.
    """
    word, mark, column = text.partition(":")
    takes_column = [known.partition(":")[0] for known in _SPLITS if ":" in known]
    by = one_of("--split", word, tuple(known.partition(":")[0] for known in _SPLITS))
    if (by in takes_column) != bool(column):
        rule = "needs a column" if by in takes_column else "takes no column"
        raise UserError(f"--split = {text!r} {rule}", f"--split {by}:COLUMN" if by in takes_column else f"--split {by}")
    if until is not None and by != "time":
        raise UserError(f"--until = {until!r} needs --split time:COLUMN")
    if until is not None and fractions is not None:
        raise UserError("--until and --fractions contradict", "omit one of them")
    if fractions is not None and by == "last-file":
        raise UserError("--fractions and --split last-file contradict: the last file is halved")
    read = fractions and tuple(share("--fractions", one, zero=False) for one in fractions.split(","))
    ends = until and tuple(one.strip() for one in until.split(","))
    return {"name": by + mark + column, "fractions": read or None, "until": ends or None}


def format_and_files(words: list[str], schema: Path | None, *, own_files: bool = False) -> tuple[str, list[str]]:
    """Splits the format from the files; with a schema, it is "table".

    Args:
        words: the words on the command line.
        schema: file that describes tables.
        own_files: whether each split has files of its own, so that there are no others.

    Raises:
        UserError: if the first word is not a format, contradicts the schema, or is not followed by a file.
    """
    extra = words if schema else words[1:]
    if own_files and extra:
        raise UserError(f"--train and the file {extra[0]} contradict: each split has its own files")
    if own_files and schema:
        return "table", []
    if not words:
        raise UserError("no file is given", "dlrmctl prepare criteo SRC... -o DIR, or with --schema FILE.toml")
    first, files = same_word(words[0], FORMATS) or words[0], words[1:]
    if schema is not None:
        if first in FORMATS and not Path(first).exists():
            raise UserError(
                f"{first!r} and --schema {schema} contradict: a schema describes your own tables",
                f"dlrmctl prepare --schema {schema} SRC... -o DIR",
            )
        return "table", words
    if first not in FORMATS:
        close = None if Path(first).exists() else nearest(first, FORMATS)
        own = f"for your own tables: dlrmctl prepare --schema FILE.toml {' '.join(words)} -o DIR"
        if _is_criteo(first):
            own = f"dlrmctl prepare criteo {' '.join(words)} -o DIR"
        raise UserError(
            f"{first!r} is not a format: give {' or '.join(FORMATS)} first, or --schema",
            f"did you mean {close!r}?" if close else own,
        )
    if not files and not own_files:
        raise UserError(f"no file after {first!r}", f"dlrmctl prepare {first} SRC... -o DIR")
    return first, files


def _is_criteo(name: str) -> bool:
    """Whether Criteo publishes a file of this name."""
    return re.match(r"(train|test|day_[0-9{*?]+)[^/]*(\.txt|\.tsv|\.gz)?$|dac.*\.tar", Path(name).name) is not None


@data_app.command("show")
def show(
    store: Annotated[
        Path,
        typer.Argument(help="Store written by `dlrmctl prepare`.", metavar="DIR", autocompletion=completion.stores),
    ],
    plot: Annotated[Path | None, option("Draw the frequencies of ids to this file, .png or .svg.", "FILE")] = None,
    json: AsJson = False,
) -> None:
    """Show the rows, splits, columns and id frequencies of a store.

    \b
    dlrmctl data show criteo --plot frequencies.png
    """
    if plot is not None:
        from dlrmctl.console.pictures import check_picture

        check_picture(plot)
    refuse_missing_store(store)
    notice("reading the store")
    from dlrmctl.datasets.show import show_data

    show_data(store, plot=plot, as_json=json)


@data_app.command("synthesize")
def synthesize(
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="Write to this file, compressed if it ends in .gz. {n} is replaced by the number of the file.",
            metavar="NAME",
        ),
    ],
    rows: Annotated[str, option("Total number of rows, for example 20M or 500k.", "N")] = "1M",
    size: Annotated[
        str,
        option("Ids per table: up to 10,000, up to 200,000, or as in Criteo's Kaggle data.", "|".join(SYNTHETIC_SIZES)),
    ] = "small",
    seed: Annotated[str, option("Seed of the data.", "N")] = "0",
    files: Annotated[str | None, option("Number of files.", "N")] = None,
    rows_per_file: Annotated[str | None, option("Number of rows per file.", "N")] = None,
    drift: Annotated[
        str | None,
        option("From file to file, replace this fraction of the ids, and change that of the effects.", "RATE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    json: AsJson = False,
) -> None:
    """Generate synthetic data with a known optimum in Criteo's format.

    \b
    dlrmctl data synthesize -o 'day_{n}.gz' --rows 20M --files 3
    dlrmctl data synthesize -o 'day_{n}.txt' --rows 100k --files 10 --drift 5%
    """
    size = one_of("--size", size, SYNTHETIC_SIZES)
    num_rows = whole_number("--rows", rows, at_least=1, at_most=MOST_SYNTHETIC_ROWS)
    num_files = _limit("--files", files, at_least=1)
    most = _limit("--rows-per-file", rows_per_file, at_least=1)
    number = whole_number("--seed", seed, at_least=0, at_most=LARGEST_SEED)
    rate = 0.0 if drift is None else share("--drift", drift, zero=True, one=True)
    notice("loading")
    from dlrmctl.datasets.synthesize import show_synthesis
    from dlrmctl.datasets.synthesize import synthesize as run

    result = run(
        out, rows=num_rows, num_files=num_files, rows_per_file=most, size=size, seed=number, force=force, drift=rate
    )
    print_json(result) if json else show_synthesis(result)


def _limit(flag: str, text: str | None, *, at_least: int) -> int | None:
    return None if text is None else whole_number(flag, text, at_least=at_least)
