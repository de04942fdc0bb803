"""The command `dlrmctl prepare` and the group `dlrmctl data`."""

from inspect import cleandoc
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import AsJson, option
from dlrmctl.console.console import notice, print_json
from dlrmctl.datasets.request import SPLITS, read_request
from dlrmctl.datasets.table_example import EXAMPLE
from dlrmctl.settings.config import LARGEST_SEED, MOST_SYNTHETIC_ROWS, SYNTHETIC_SIZES
from dlrmctl.settings.parse import one_of, share, whole_number
from dlrmctl.settings.typed import refuse_missing_store

_IDS_PANEL, _ROWS_PANEL, _SPLITS_PANEL, _WORK_PANEL = "Ids", "Rows", "Splits", "Workers"
data_app = typer.Typer(help="Show and generate data.", no_args_is_help=True)


def prepare(
    out: Annotated[str, typer.Option("--out", "-o", help="Write the store to this directory or URL.", metavar="DIR")],
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
    vocabulary_from: Annotated[str | None, option("Vocabulary: use that of this store.", "STORE", _IDS_PANEL)] = None,
    extend: Annotated[
        str | None,
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
    forget: Annotated[
        str | None,
        option(
            "With --extend, give rows of values that did not occur for this many stores, one a day, to new values.",
            "DAYS",
            _IDS_PANEL,
        ),
    ] = None,
    hash_rows: Annotated[
        str | None, option("Hashing: number of rows per table. \\[default: 1000000]", "N", _IDS_PANEL)
    ] = None,
    split: Annotated[
        str | None,
        option(
            "Divide the rows by their order, the last file, at random, or by a column of times or groups. "
            "\\[default: order]",
            "|".join(SPLITS),
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
    raw_sample: Annotated[
        bool,
        typer.Option(
            "--raw-sample/--no-raw-sample",
            help="Keep 1,000 raw validation rows in the store, with which `dlrmctl export` checks a bundle.",
            rich_help_panel=_ROWS_PANEL,
        ),
    ] = True,
    workers: Annotated[
        str | None,
        option("Number of processes. \\[default: one per core; threads for small files]", "N", _WORK_PANEL),
    ] = None,
    scheduler: Annotated[
        str | None,
        option(
            "Run the work on this Dask cluster; its workers must see the same files. Needs dlrmctl\\[cluster].",
            "ADDRESS",
            _WORK_PANEL,
        ),
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
    request = read_request(
        sources or [],
        {
            "schema": schema,
            "ids": ids,
            "min_count": min_count,
            "max_rows_per_table": max_rows_per_table,
            "vocabulary_from": vocabulary_from,
            "extend": extend,
            "keep_rare": keep_rare or None,
            "forget": forget,
            "hash_rows": hash_rows,
            "split": split,
            "fractions": fractions,
            "until": until,
            "train": train,
            "validation": validation,
            "test": test,
            "limit": limit,
            "sample_negatives": sample_negatives,
            "seed": seed,
            "max_bad_rows": max_bad_rows,
            "raw_sample": raw_sample,
            "name": name,
            "workers": workers,
            "scheduler": scheduler,
        },
    )
    notice("loading")
    from dlrmctl.datasets.prepare import prepare as run
    from dlrmctl.datasets.prepare import show_prepared

    prepared = run(request, out)
    print_json(prepared.to_dict()) if json else show_prepared(prepared)


# The example schema is shown as it is; its brackets would be read as markup.
prepare.__doc__ = f"{cleandoc(prepare.__doc__ or '')}\n\n\b\n" + EXAMPLE.replace("\n\n", "\n\n\b\n").replace("[", "\\[")


@data_app.command("show")
def show(
    store: Annotated[
        str,
        typer.Argument(
            help="Store written by `dlrmctl prepare`, or its URL.", metavar="DIR", autocompletion=completion.stores
        ),
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
