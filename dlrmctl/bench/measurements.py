"""The benchmarks as things to measure: options checked first, then the work imported, run on its ranks, and shown.

What `--quick` makes smaller: numbers of rounds, and settings that were not typed.

`dlrmctl bench all`: every benchmark after the other, each as its own command runs it.

Lists of values with commas between them, as options of benchmarks take them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.bench.delivery import tagged
from dlrmctl.console.console import output, say
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import world_from_environment
from dlrmctl.settings.config import DENSE_OPTIMIZERS, Config, resolve, section_of
from dlrmctl.settings.parse import names_of, one_of, positive_numbers, whole_number

Texts = Mapping[str, str | None]  # options as they were typed; None for those that were not
Show = Callable[[dict[str, Any]], None]
# Data and MLPs that train in a second, for the benchmarks that train models to the end.
_SHORT_TRAINING = {
    "synthetic_rows": "20000",
    "batch_size": "256",
    "evaluations": "3",
    "bottom_mlp": "32-16",
    "top_mlp": "32-1",
    "log_every": "1000000",
}
_SETTINGS: dict[str, dict[str, str]] = {
    "step": {},
    "shampoo": {"shampoo_frequency": "10"},
    "convergence": {**_SHORT_TRAINING, "shampoo_frequency": "10"},
    "embeddings": {**_SHORT_TRAINING, "dense_optimizer": "adagrad"},
}
_MLP_FOLLOWS = ("dim",)  # settings that the short MLPs would contradict
# Option -> its default in a full run, and in a quick one.
OPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "step": {"rounds": ("5", "5"), "steps": ("20", "4"), "rows_cap": ("1000000", "50000")},
    "shampoo": {"periods": ("5", "5")},
    "convergence": {"optimizers": ("adagrad,shampoo",) * 2, "lrs": ("0.003,0.01,0.03", "0.01"), "seeds": ("3", "2")},
    "embeddings": {"methods": ("full,hash,qr",) * 2, "factors": ("0.3,1,3", "1"), "seeds": ("3", "2")},
    "data": {"rounds": ("3", "2")},
}
BASE = "base"  # the variant of the settings themselves
_FLAGS = {"precision": "--precisions", "embedding": "--embeddings", "dense_optimizer": "--optimizers"}


@dataclass(frozen=True)
class Measurement:
    """A benchmark that is ready to run.

    Attributes:
        command: "step", ...
        options: with which it is run, besides the settings.
        configs: settings of every model that it builds, the first those that were typed; none for "data".
        run: on every rank; the result where this rank is to show it, else None.
        show: prints a result for people; imports what it needs.
    """

    command: str
    options: dict[str, Any]
    configs: Sequence[Config]
    run: Callable[[], dict[str, Any] | None]
    show: Show


def step(flags: Mapping[str, str], texts: Texts, *, quick: bool) -> Measurement:
    """The training step.

    Args:
        flags: typed settings.
        texts: "rounds", "steps", "rows_cap", and lists of values of settings by the setting's name.
        quick: small and short.
    """
    flags = quick_settings("step", flags) if quick else dict(flags)
    numbers = {}
    for name in ("rounds", "steps", "rows_cap"):
        text = chosen("step", name, texts.get(name), quick=quick)
        numbers[name] = whole_number(f"--{name.replace('_', '-')}", text, at_least=1)
    configs = step_variants(
        flags, {name: text for name, text in texts.items() if name not in numbers and text is not None}
    )

    def run() -> dict[str, Any] | None:
        from dlrmctl.bench.step import bench_step

        return _on_ranks(configs[BASE], lambda ranks: bench_step(configs, ranks, **numbers))

    def show(result: dict[str, Any]) -> None:
        from dlrmctl.bench.step import show_bench_step

        show_bench_step(result)

    return Measurement("step", {"variants": list(configs), **numbers}, list(configs.values()), run, show)


def shampoo(flags: Mapping[str, str], texts: Texts, *, quick: bool) -> Measurement:
    """Shampoo on the MLPs; `texts` may have "periods"."""
    config = resolve({}, quick_settings("shampoo", flags) if quick else flags)
    periods = whole_number("--periods", chosen("shampoo", "periods", texts.get("periods"), quick=quick), at_least=1)

    def run() -> dict[str, Any] | None:
        from dlrmctl.bench.shampoo import bench_shampoo

        return _on_ranks(config, lambda ranks: bench_shampoo(config, ranks, periods=periods))

    def show(result: dict[str, Any]) -> None:
        from dlrmctl.bench.shampoo import show_bench_shampoo

        show_bench_shampoo(result)

    return Measurement("shampoo", {"periods": periods}, [config], run, show)


def convergence(flags: Mapping[str, str], texts: Texts, *, quick: bool) -> Measurement:
    """Optimizers trained to the end; `texts` may have "optimizers", "lrs" and "seeds"."""
    config = resolve({}, quick_settings("convergence", flags) if quick else flags)
    given = {name: chosen("convergence", name, texts.get(name), quick=quick) for name in ("optimizers", "lrs", "seeds")}
    names = names_of("--optimizers", given["optimizers"])
    for name in names:
        one_of("--optimizers", name, DENSE_OPTIMIZERS)
    options: dict[str, Any] = {
        "optimizers": names,
        "lrs": positive_numbers("--lrs", given["lrs"]),
        "seeds": whole_number("--seeds", given["seeds"], at_least=1),
    }

    def run() -> dict[str, Any] | None:
        from dlrmctl.bench.convergence import bench_convergence

        return _on_ranks(config, lambda ranks: bench_convergence(config, ranks, **options))

    def show(result: dict[str, Any]) -> None:
        from dlrmctl.bench.convergence import show_bench_convergence

        show_bench_convergence(result)

    return Measurement("convergence", options, [config], run, show)


def embeddings(flags: Mapping[str, str], texts: Texts, *, quick: bool) -> Measurement:
    """Kinds of tables trained to the end; `texts` may have "methods", "factors" and "seeds"."""
    config = resolve({}, quick_settings("embeddings", flags) if quick else flags)
    given = {name: chosen("embeddings", name, texts.get(name), quick=quick) for name in ("methods", "factors", "seeds")}
    methods = names_of("--methods", given["methods"])
    factors = positive_numbers("--factors", given["factors"])
    seeds = whole_number("--seeds", given["seeds"], at_least=1)
    options = {"methods": methods, "factors": factors, "seeds": seeds}

    def run() -> dict[str, Any] | None:
        from dlrmctl.bench.embeddings import bench_embeddings, method_settings

        for method in methods:
            method_settings(config, method)  # before ranks meet
        return _on_ranks(
            config, lambda ranks: bench_embeddings(config, ranks, methods=methods, factors=factors, seeds=seeds)
        )

    def show(result: dict[str, Any]) -> None:
        from dlrmctl.bench.embeddings import show_bench_embeddings

        show_bench_embeddings(result)

    return Measurement("embeddings", options, [config], run, show)


def data(path: Path | None, texts: Texts, *, quick: bool) -> Measurement:
    """Reading and preparing; `texts` may have "rounds"."""
    rounds = whole_number("--rounds", chosen("data", "rounds", texts.get("rounds"), quick=quick), at_least=1)

    def run() -> dict[str, Any] | None:
        from dlrmctl.bench.data import bench_data

        return bench_data(path, rounds=rounds, quick=quick)

    def show(result: dict[str, Any]) -> None:
        from dlrmctl.bench.data import show_bench_data

        show_bench_data(result)

    return Measurement("data", {"rounds": rounds, "quick": quick}, [], run, show)


def _on_ranks(config: Config, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any] | None:
    from dlrmctl.ranks.ranks import process_group

    with process_group(config.train.device) as ranks:
        result = work(ranks)
        return {"ranks": ranks.world_size, **result} if ranks.is_main else None


def described(command: str, name: str) -> str:
    """The defaults of an option, for its help."""
    full, quick = OPTIONS[command][name]
    return f"Default: {full}." if full == quick else f"Default: {full}; quick {quick}."


def quick_settings(command: str, flags: Mapping[str, str]) -> dict[str, str]:
    """The typed settings over small ones; generated rows unless data was named."""
    small = dict(_SETTINGS[command])
    if "synthetic_rows" in small and not {"path", "dataset"} & set(flags):
        small["dataset"] = "synthetic"
    if set(_MLP_FOLLOWS) & set(flags):
        small.pop("bottom_mlp", None)
    return {**small, **flags}


def chosen(command: str, name: str, typed: str | None, *, quick: bool) -> str:
    """What was typed for an option of a command, or its default in a full or a quick run."""
    return typed if typed is not None else OPTIONS[command][name][quick]


def all_measurements(flags: Mapping[str, str], *, only: str | None, quick: bool) -> Measurement:
    """All of them, or some, as one.

    Args:
        flags: typed settings, for every one.
        only: commands with commas between them; None for all.
        quick: small and short, a few minutes in all.

    Raises:
        UserError: on more than one rank, or for a command that is none.
    """
    ranks = world_from_environment().world_size
    if ranks > 1:
        raise UserError(f"bench all is for one rank, not {ranks}", "bench step --nproc N measures several")
    known: dict[str, Callable[[], Measurement]] = {
        "step": lambda: step(flags, {"precision": "fp32,medium"}, quick=quick),
        "shampoo": lambda: shampoo(flags, {}, quick=quick),
        "convergence": lambda: convergence(flags, {}, quick=quick),
        "embeddings": lambda: embeddings(flags, {}, quick=quick),
        "data": lambda: data(None, {}, quick=quick),
    }
    names = list(known) if only is None else names_of("--only", only)
    for name in names:
        one_of("--only", name, tuple(known))
    parts = [known[name]() for name in names]

    def run() -> dict[str, Any]:
        results, seconds = {}, {}
        for part in parts:
            started = time.monotonic()
            say(f"bench {part.command}")
            measured = part.run()
            assert measured is not None
            results[part.command] = tagged(part.command, measured, part.options)
            seconds[part.command] = time.monotonic() - started
        return {"results": results, "seconds": seconds}

    def show(result: dict[str, Any]) -> None:
        for part in parts:
            output.print(f"bench {part.command}, {result['seconds'][part.command]:.0f} s")
            part.show(result["results"][part.command])

    return Measurement("all", {"only": names, "quick": quick}, [], run, show)


_FLAGS |= {"batch_size": "--batch-sizes"}


def step_variants(flags: Mapping[str, str], lists: Mapping[str, str]) -> dict[str, Config]:
    """The settings, and for every value in a list the settings with this value, where they are others.

    Args:
        flags: typed settings.
        lists: setting -> values with commas between them.

    Raises:
        UserError: for a value that the setting does not take, naming the option of the list.
    """
    configs = {BASE: resolve({}, flags)}
    for name, text in lists.items():
        others = {key: value for key, value in flags.items() if key != name}
        for value in names_of(_FLAGS[name], text):
            config = resolve({section_of(name): {name: value}}, others, file_name=_FLAGS[name])
            if config not in configs.values():
                configs[f"batch {value}" if name == "batch_size" else value] = config
    return configs
