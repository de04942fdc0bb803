"""The commands that make and show data: `dlrmctl prepare`, and the group `dlrmctl data`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.config import SYNTHETIC_SIZES
from dlrmctl.console import print_json
from dlrmctl.errors import UserError, nearest
from dlrmctl.options import AsJson, large_number, one_of, whole_number

FORMATS = ("criteo",)

data_app = typer.Typer(help="Make and look at data.", no_args_is_help=True)


def prepare(
    sources: Annotated[
        list[str], typer.Argument(help="The format, then files in order of time.", metavar="FORMAT SRC...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new store.")],
    ids: Annotated[str, typer.Option(help="How values become ids.", metavar="vocabulary|hash")] = "vocabulary",
    min_count: Annotated[str, typer.Option(help="Vocabulary: rarer values share row 1.", metavar="N")] = "2",
    hash_rows: Annotated[str, typer.Option(help="Hashing: rows per table.", metavar="N")] = "1000000",
    split: Annotated[
        str,
        typer.Option(
            help="order: first 6/7 train, the rest halved; last-file: the last file halved.", metavar="order|last-file"
        ),
    ] = "order",
    max_bad_rows: Annotated[
        str | None,
        typer.Option(help="Refuse the data above this many rejected lines. Default: 1 % and 100 lines.", metavar="N"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Raw data -> a store for `dlrmctl train --data DIR`.

    prepare criteo SRC... takes Criteo click logs (Kaggle or 1TB), plain or .gz.
    """
    _, files = _format_and_files(sources)
    one_of("--ids", ids, ("vocabulary", "hash"))
    one_of("--split", split, ("order", "last-file"))
    from dlrmctl.prepare import prepare as run

    run(
        [Path(file) for file in files],
        out,
        min_count=whole_number("--min-count", min_count, at_least=1),
        hash_rows=whole_number("--hash-rows", hash_rows, at_least=2) if ids == "hash" else None,
        split=split,
        max_bad_rows=None if max_bad_rows is None else whole_number("--max-bad-rows", max_bad_rows, at_least=0),
        as_json=json,
    )


def _format_and_files(words: list[str]) -> tuple[str, list[str]]:
    """Takes the format off the front.

    Raises:
        UserError: if the first word is no format, or no file follows it.
    """
    first, files = words[0], words[1:]
    if first not in FORMATS:
        close = nearest(first, FORMATS)
        raise UserError(
            f"{first!r} is not a format: the first word is one of {', '.join(FORMATS)}",
            f"did you mean {close!r}?" if close else f"dlrmctl prepare {FORMATS[0]} {first} -o DIR",
        )
    if not files:
        raise UserError(f"no file after {first!r}", f"dlrmctl prepare {first} SRC... -o DIR")
    return first, files


@data_app.command("synthesize")
def synthesize(
    out: Annotated[
        str, typer.Option("--out", "-o", help="File, compressed if it ends in .gz; {n} is a number.", metavar="NAME")
    ],
    rows: Annotated[str, typer.Option(help="Rows of all files, such as 20M or 500k.", metavar="N")] = "1M",
    size: Annotated[
        str,
        typer.Option(
            help="Ids per table: up to 10,000; up to 200,000; or as in Criteo's Kaggle data.",
            metavar="|".join(SYNTHETIC_SIZES),
        ),
    ] = "small",
    seed: Annotated[str, typer.Option(help="Seed of the teacher and its rows.", metavar="N")] = "0",
    files: Annotated[str | None, typer.Option(help="Cut the rows into so many files.", metavar="N")] = None,
    rows_per_file: Annotated[str | None, typer.Option(help="Cut the rows into files of so many.", metavar="N")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json: AsJson = False,
) -> None:
    """Generated rows with a known optimum, as files in Criteo's format."""
    one_of("--size", size, SYNTHETIC_SIZES)
    num_rows = large_number("--rows", rows, at_least=1)
    num_files = None if files is None else whole_number("--files", files, at_least=1)
    most = None if rows_per_file is None else large_number("--rows-per-file", rows_per_file, at_least=1)
    number = whole_number("--seed", seed, at_least=0)
    from dlrmctl.synthesize import show_synthesis
    from dlrmctl.synthesize import synthesize as run

    result = run(out, rows=num_rows, num_files=num_files, rows_per_file=most, size=size, seed=number, force=force)
    print_json(result) if json else show_synthesis(result)
