"""Names of run directories, and finding the run that a restarted job continues.

torchrun and Slurm restart a failed job with the same command, and the job must find its earlier run. The name of its
run is derived from the job and the settings; a run in a given directory stores the job's name in environment.json.
Other names are new each time.
"""

import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import Config
from dlrmctl.settings.embeddings import embedding_of
from dlrmctl.settings.stores import described_in, store_place

_LONGEST = 40  # characters of a job's name
_NO_JOB = "none"  # torchrun's name for a job without --rdzv-id


def named_after_data(config: Config) -> Config:
    """Sets the data set of the settings to the name of the data in their path.

    Raises:
        DataError: if there is no store in that path.
    """
    if config.data.path is None:
        return config
    from dlrmctl.data.store.manifest import read_manifest

    manifest = read_manifest(described_in(store_place(config.data.path, config.data)))
    return config.change(dataset=manifest.called(Path(config.data.path)))


def place_of_run(
    config: Config, given: Path | None = None, *, rows: Mapping[str, int] | None = None
) -> tuple[Path, bool]:
    """The directory of a run, and whether it already exists and is to be continued.

    A job continues its unfinished run of the same settings. A finished run is returned only if the job was restarted.

    Args:
        given: the directory, if chosen; a run of another job or with other settings in it is not continued.
        rows: see `new_name`.

    Raises:
        UserError, DataError: if environment.json in `given` is damaged.
    """
    part = part_of_job(config)
    if given is not None:
        run = RunDirectory(given, writes=False)
        return given, part is not None and run.settings_file.is_file() and run.job() == part and _is_open(run)
    if part is not None:
        path = Path(f"{_beginning(config, rows)}-{part}")
        run = RunDirectory(path, writes=False)
        if _is_open(run):
            return path, run.settings_file.is_file()
    return new_name(config, rows), False


def new_name(config: Config, rows: Mapping[str, int] | None = None) -> Path:
    """A new directory, named after the data, the type of the tables that are compressed, and the time.

    Args:
        rows: of a full table of each feature; without it, the name has the type in the settings.
    """
    return Path(f"{_beginning(config, rows)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}")


def _beginning(config: Config, rows: Mapping[str, int] | None) -> str:
    settings = config.embeddings
    kind = embedding_of(settings, config.tables, rows) if rows else settings.embedding
    return f"runs/{config.data.dataset}-{'baseline' if config.baseline is not None else kind}"


def part_of_job(config: Config) -> str | None:
    """The name of a training with these settings in this job, the same after a restart; None without a job."""
    job = _job()
    return None if job is None else f"{job}-{_fingerprint(config)}"


def _is_open(run: RunDirectory) -> bool:
    return not run.is_finished or _is_restarted()


def _job() -> str | None:
    """The name of this process's job: unchanged by a restart, different for other jobs."""
    if number := os.environ.get("SLURM_JOB_ID"):
        job = f"slurm-{number}"
    elif (name := os.environ.get("TORCHELASTIC_RUN_ID", _NO_JOB)) != _NO_JOB:
        job = f"torchrun-{name}"
    elif file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # .../<new for every torchrun>/attempt_0/<rank>/error.json
        job = f"torchrun-{Path(file).parents[2].name}"
    else:
        return None
    return re.sub(r"[^\w.-]", "-", job)[:_LONGEST]


def _is_restarted() -> bool:
    """Whether the job was restarted."""
    counts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


def _fingerprint(config: Config) -> str:
    """Eight hexadecimal digits derived from the settings."""
    return f"{zlib.crc32(json.dumps(config.to_dict(derived=False)).encode()):08x}"
