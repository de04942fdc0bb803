"""Trains day after day: each day's rows are scored by the model of the day before, and then trained on.

OUT/NAME       the run of a day, named after its store
    daily.json what was measured so far

Does not load torch, which only the ranks need.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrmctl.console.console import finite, print_table, say
from dlrmctl.console.pictures import picture
from dlrmctl.console.text import number_text, with_error
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.extension import check_extends
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import write_whole
from dlrmctl.data.sealed import Values
from dlrmctl.data.store.store import Store
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import run_on_ranks
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.records import read_record
from dlrmctl.settings.config import resolve
from dlrmctl.settings.typed import resolve_typed
from dlrmctl.training.run import run_training, settings_to_start_from, warn_of_kept_settings

REPORT = "daily.json"
_SCORED = "train"  # the rows that are trained on afterwards
_MODELS = {"before": "the day before", "first": "the first day"}


def train_daily(
    stores: Sequence[Path],
    out: Path,
    file: Mapping[str, Any],
    flags: Mapping[str, str],
    *,
    nproc: int = 1,
    command_line: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains a run for each store, starting from that of the store before; finished days are not repeated.

    Args:
        stores: prepared data, oldest first; each extends the one before.
        out: directory of the runs and of the report.
        file: sections of a settings file, for the first day.
        flags: typed settings, for all days.
        nproc: number of ranks on this machine.
        command_line: arguments to record in environment.json.

    Returns:
        {"out", "days": one entry for each store}: its name, training examples, new ids, the metrics of the models of
        "before" and "first" on its training rows, before they were trained on, and those of its own model on "test".

    Raises:
        UserError, DataError: if the stores do not follow each other, or a day fails.
    """
    names = _check(stores)
    days: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)
    known = _read(out)
    warn_of_kept_settings(out / names[0], resolve_typed(dict(file), {**flags, "path": str(stores[0])}), flags)
    for number, (store, name) in enumerate(zip(stores, names, strict=True)):
        run, earlier = out / name, [out / names[place] for place in (number - 1, 0)] if number else []
        day = {**_about(store, stores[number - 1] if number else None), **known.get(name, {})}
        say(
            f"{name} ({number + 1} of {len(stores)}): {day['examples']:,} training examples, {day['new_ids']:,} new ids"
        )
        for model, before in zip(_MODELS, earlier, strict=False):
            if model not in day:
                same = model == "first" and number == 1
                day[model] = day["before"] if same else _scored(before, store, nproc)
        directory = RunDirectory(run, writes=False)
        if directory.is_finished:
            day["test"] = json.loads((run / "results.json").read_text())["test"]
        else:
            resume = directory.settings_file.is_file()
            typed = {**flags, "path": str(store)} | ({"init_from": str(earlier[0])} if earlier else {})
            sections = settings_to_start_from(earlier[0], {}, typed) if earlier else dict(file)
            config = resolve(directory.settings(), {}) if resume else resolve_typed(sections, typed)
            trained = run_training(config, run_dir=run, resume=resume, nproc=nproc, command_line=command_line)
            day["test"] = trained["test"]
        days.append(day)
        write_whole(out / REPORT, json.dumps(finite({"days": days}), indent=1).encode())
    return {"out": str(out), "days": days}


def _check(stores: Sequence[Path]) -> list[str]:
    """Checks that the ids of each store are kept by the next one; returns the names of the runs."""
    names = [store.resolve().name for store in stores]
    if len(names) < 2:
        raise UserError("daily training needs at least two stores, oldest first")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two stores are called {repeated}", "their runs would have the same name: rename one")
    features: list[FeatureSpace] = [Store(store).features for store in stores]
    for number in range(1, len(stores)):
        try:
            check_extends(features[number], features[number - 1])
        except DataError as problem:
            hint = f"dlrmctl prepare ... --extend {stores[number - 1]} -o {stores[number]}"
            raise UserError(f"{stores[number]} does not follow {stores[number - 1]}: {problem.message}", hint) from None
    return names


def _read(out: Path) -> dict[str, dict[str, Any]]:
    """What was measured in an earlier call: day -> its entry."""
    if not (out / REPORT).exists():
        return {}

    def parse(values: Values) -> dict[str, dict[str, Any]]:
        return {day.text("day"): dict(day.entries) for day in values.each("days")}

    return read_record(out / REPORT, parse, f"remove {REPORT}; finished runs are kept")


def _about(store: Path, before: Path | None) -> dict[str, Any]:
    source = Store(store)
    rows = sum(feature.rows for feature in source.schema.sparse)
    known = rows if before is None else sum(feature.rows for feature in Store(before).schema.sparse)
    return {"day": store.resolve().name, "examples": source.num_examples("train"), "new_ids": rows - known}


def _scored(run: Path, store: Path, nproc: int) -> dict[str, Any]:
    """The metrics of a run on the training rows of a store, whose new ids are rare values to it."""
    config = resolve(RunDirectory(run, writes=False).settings(), {"path": str(store)}).for_scoring()
    arguments = {"settings": config.to_dict(), "run": str(run), "checkpoint": "best", "split": _SCORED, "plot": None}
    found = run_on_ranks("dlrmctl.scoring.evaluate:evaluate_on_rank", arguments, nproc)
    metrics: dict[str, Any] = found[_SCORED]
    return metrics


def show_daily(result: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    rows = [
        [
            day["day"],
            f"{day['examples']:,}",
            f"{day['new_ids']:,}",
            *(with_error(day[m]["ne"], day[m]["ne_se"]) if m in day else "-" for m in _MODELS),
            with_error(day["test"]["ne"], day["test"]["ne_se"]),
        ]
        for day in result["days"]
    ]
    columns = ["", "examples", "new ids", *(f"NE, {name}" for name in _MODELS.values()), "test NE, own"]
    print_table("NE of models on each day's training rows, before they are trained on", columns, rows)
    if loss := _mean_loss(result["days"]):
        say(f"a model of the first day has a NE {number_text(loss)} higher than one of the day before, on average")


def _mean_loss(days: Sequence[Mapping[str, Any]]) -> float | None:
    both = [day for day in days[2:] if day["before"]["ne"] is not None and day["first"]["ne"] is not None]
    return sum(day["first"]["ne"] - day["before"]["ne"] for day in both) / len(both) if both else None


def draw_daily(result: Mapping[str, Any], path: Path) -> None:
    """Draws NE by day.

    Raises:
        UserError: if the picture cannot be written.
    """
    with picture(path) as figure:
        axes = figure.subplots()
        for model, name in _MODELS.items():
            scored = [(number, day[model]["ne"]) for number, day in enumerate(result["days"]) if model in day]
            axes.plot(*zip(*scored, strict=True), marker="o", label=f"model of {name}")
        axes.set_xticks(range(len(result["days"])), [day["day"] for day in result["days"]], rotation=30, ha="right")
        axes.set_ylabel("NE on the rows of the day")
        axes.legend()
