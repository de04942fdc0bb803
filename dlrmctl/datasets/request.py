"""What is to be prepared, and how: the options of `dlrmctl prepare`, read and checked before any data is.

Does not load NumPy or polars.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.errors import UserError
from dlrmctl.settings.parse import one_of, share, whole_number
from dlrmctl.settings.stores import described_in, store_place
from dlrmctl.settings.synonyms import nearest, same_word
from dlrmctl.settings.typed import refuse_missing_store

FORMATS = ("criteo", "npy")
SPLITS = ("order", "last-file", "random", "time:COLUMN", "group:COLUMN")
_MOST_WORKERS = 1024
_RAW_SAMPLE = 1000  # validation rows
_IDS = {"criteo": ("vocabulary", "hash"), "npy": ("rows", "vocabulary", "hash"), "table": ("vocabulary", "hash")}


@dataclass(frozen=True)
class PrepareRequest:
    """The files of a preparation and the decisions about it.

    Attributes:
        format: "criteo", "npy", or "table" with a schema.
        sources: files, oldest first; or those of each split.
        schema: TOML file that describes the columns of a table, or its content.
        ids_are_rows: whether the ids of npy files are used as rows.
        options: arguments of `PrepareOptions`; a name of None means the name of the directory, and the split has the
            arguments of `Split.parse`.
        workers: number of processes; None means one per core, or threads for small files.
        scheduler: address of a Dask scheduler whose workers do the work.
    """

    format: str
    sources: Sequence[str] | Sequence[Sequence[str]]
    schema: Path | Mapping[str, Any] | None
    ids_are_rows: bool
    options: Mapping[str, Any]
    workers: int | None = None
    scheduler: str | None = None


def read_request(words: Sequence[str], given: Mapping[str, Any]) -> PrepareRequest:
    """Reads the options of `dlrmctl prepare`.

    Args:
        words: a format unless there is a schema, and files.
        given: the options by name, as typed; None for one that was not typed.

    Raises:
        UserError: if one is not among its values, or they contradict.
        DataError: if there is no store where an option names one.
    """
    own = _own_files({f"--{name}": given[name] for name in ("train", "validation", "test")})
    if own and (other := next((name for name in ("split", "fractions", "until", "limit") if given[name]), None)):
        raise UserError(f"--train and --{other} contradict: each split has its own files")
    schema, ids, extend = given["schema"], given["ids"], given["extend"]
    format, files = _format_and_files(list(words), schema, own_files=own is not None)
    rule = _split_of(given["split"] or "order", given["fractions"], given["until"])
    drawn = rule["name"].startswith(("random", "group"))
    chosen = one_of("--ids", ids or _IDS[format][0], _IDS[format])
    for name, wanted in (
        ("min_count", "vocabulary"),
        ("max_rows_per_table", "vocabulary"),
        ("vocabulary_from", "vocabulary"),
        ("keep_rare", "vocabulary"),
        ("forget", "vocabulary"),
        ("hash_rows", "hash"),
    ):
        if given[name] is not None and chosen != wanted:
            raise UserError(f"{_flag(name)} is for --ids {wanted}, not for {chosen}")
    if given["seed"] is not None and given["sample_negatives"] is None and not drawn:
        raise UserError("--seed needs --sample-negatives, or --split random or group: nothing else is random")
    if given["vocabulary_from"] is not None and given["min_count"] is not None:
        raise UserError("--min-count and --vocabulary-from contradict: the vocabulary is fixed")
    for name in ("vocabulary_from", "hash_rows"):
        if extend is not None and given[name] is not None:
            raise UserError(
                f"{_flag(name)} and --extend contradict: --extend takes ids from its store", "omit one of the two"
            )
    if given["forget"] is not None and extend is None:
        raise UserError("--forget needs --extend: only rows of an earlier store can be reused")
    known, extend = (None if name is None else _described(name) for name in (given["vocabulary_from"], extend))
    if extend is not None and ids is not None:
        _refuse_other_ids(extend, chosen)
    seed = whole_number("--seed", given["seed"] or "0", at_least=0)
    options = {
        "min_count": _limit(given, "min_count", at_least=1),
        "max_rows_per_table": _limit(given, "max_rows_per_table", at_least=2),
        "vocabulary_from": known,
        "extend": extend,
        "keep_rare": bool(given["keep_rare"]),
        "forget": None
        if given["forget"] is None
        else whole_number("--forget", given["forget"], at_least=1, at_most=(1 << 16) - 1),
        "hash_rows": whole_number("--hash-rows", given["hash_rows"] or "1000000", at_least=2, at_most=1 << 32)
        if chosen == "hash" and extend is None
        else None,
        "split": {**rule, **({"seed": seed} if drawn else {})},
        "limit": _limit(given, "limit", at_least=1),
        "sample_negatives": share("--sample-negatives", given["sample_negatives"] or "1", zero=False, one=True),
        "seed": seed,
        "max_bad_rows": _limit(given, "max_bad_rows", at_least=0),
        "raw_sample": _RAW_SAMPLE if given["raw_sample"] else 0,
        "name": given["name"],
    }
    workers, scheduler = _limit(given, "workers", at_least=1), given["scheduler"]
    if workers is not None and scheduler is not None:
        raise UserError("--workers and --scheduler contradict: a cluster has its own workers", "omit one of the two")
    if workers is not None and workers > _MOST_WORKERS:
        raise UserError(f"--workers {workers} must be at most {_MOST_WORKERS}")
    return PrepareRequest(format, own or files, schema, chosen == "rows", options, workers, scheduler)


def _described(store: Path | str) -> Path:
    """The directory with the ids of a store.

    Raises:
        DataError: if there is no store.
    """
    refuse_missing_store(store)
    return described_in(store_place(store))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _limit(given: Mapping[str, Any], name: str, *, at_least: int) -> int | None:
    return None if given[name] is None else whole_number(_flag(name), given[name], at_least=at_least)


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
    takes_column = [known.partition(":")[0] for known in SPLITS if ":" in known]
    by = one_of("--split", word, tuple(known.partition(":")[0] for known in SPLITS))
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


def _format_and_files(
    words: list[str], schema: Path | Mapping[str, Any] | None, *, own_files: bool = False
) -> tuple[str, list[str]]:
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
