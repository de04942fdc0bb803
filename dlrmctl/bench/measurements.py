"""The benchmarks as things to measure: options checked first, then the work imported, run on its ranks, and shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.bench.lists import BASE, names_of, positive_numbers, step_variants
from dlrmctl.bench.quick import chosen, quick_settings
from dlrmctl.config import DENSE_OPTIMIZERS, Config, resolve
from dlrmctl.options import one_of, whole_number

Texts = Mapping[str, str | None]  # options as they were typed; None for those that were not
Show = Callable[[dict[str, Any]], None]


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
        from dlrmctl.bench.stepview import show_bench_step

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
    from dlrmctl.ranks import process_group

    with process_group(config.train.device) as ranks:
        result = work(ranks)
        return {"ranks": ranks.world_size, **result} if ranks.is_main else None
