"""The benchmarks: options are read and checked first, then the work is imported, run on its ranks, and shown.

`--quick` reduces the rounds, and the settings that were not given.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from dlrmctl.assembly.storage import refuse_without_gpu
from dlrmctl.bench.delivery import tagged
from dlrmctl.console.console import output, say
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import launch_environment, needs_launch, run_on_ranks
from dlrmctl.settings.config import DENSE_OPTIMIZERS, Config, resolve, section_of
from dlrmctl.settings.parse import names_of, one_of, positive_numbers, whole_number
from dlrmctl.settings.typed import resolve_typed

Flags = Mapping[str, str]  # typed settings
Texts = Mapping[str, str | None]  # options as given; None for the others
# Option -> its default in a full run, and in a quick one.
_DEFAULTS: dict[str, dict[str, tuple[str, str]]] = {
    "step": {"rounds": ("5", "5"), "steps": ("20", "4"), "rows_cap": ("1000000", "50000")},
    "shampoo": {"periods": ("5", "5")},
    "convergence": {"optimizers": ("adagrad,shampoo",) * 2, "lrs": ("0.003,0.01,0.03", "0.01"), "seeds": ("3", "2")},
    "embeddings": {"methods": ("full,hash,qr",) * 2, "factors": ("0.3,1,3", "1"), "seeds": ("3", "2")},
    "noise": {"steps": ("500", "60")},
    "data": {"rounds": ("3", "2")},
    "baseline": {"rounds": ("3", "1"), "passes": ("40", "10")},
    "compression": {
        **{"rows": ("1200000", "20000"), "tables": ("23", "4"), "dim": ("16", "16")},
        **{"ratio": ("8", "8"), "rounds": ("1", "1")},
    },
}
_CRITEO_LIKE = "110000"  # generated rows to fit
# Data and MLPs that train in a second, for benchmarks that train whole models.
_SHORT_TRAINING = {
    "synthetic_rows": "20000",
    "batch_size": "256",
    "evaluations": "3",
    "bottom_mlp": "32-16",
    "top_mlp": "32-1",
    "log_every": "1000000",
}
_QUICK_SETTINGS: dict[str, dict[str, str]] = {
    "step": {},
    "shampoo": {"shampoo_frequency": "10"},
    "convergence": {**_SHORT_TRAINING, "shampoo_frequency": "10"},
    "embeddings": {**_SHORT_TRAINING, "dense_optimizer": "adagrad"},
    "noise": _SHORT_TRAINING,
    "baseline": {"synthetic_rows": "5000"},
}
# Defaults that differ from those of a training. Kinds of tables are compared on small tables too, and variants that are
# trained to the end all take one pass.
_DEFAULT_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "step": {"embeddings": {"qr_threshold": 200}},
    "shampoo": {},
    "convergence": {"train": {"epochs": 1}},
    "embeddings": {"embeddings": {"qr_threshold": 200}, "train": {"epochs": 1}},
    "noise": {},
    "baseline": {"baseline": {}},
}
# Settings whose values make variants of a step, and the options that list them.
_LISTS = {
    "precision": "--precisions",
    "embedding": "--embeddings",
    "dense_optimizer": "--optimizers",
    "batch_size": "--batch-sizes",
    "compress_a2a": "--exchanges",
}


@dataclass(frozen=True)
class Measurement(ABC):
    """A benchmark that is ready to run.

    Attributes:
        command: "step", ...
        configs: settings of every model that it builds, first the given ones; none for "data".
        options: its options, besides the settings.
    """

    command: ClassVar[str]
    configs: Sequence[Config]
    options: dict[str, Any]

    @property
    def files(self) -> dict[str, Path]:
        """The files that the measurement itself writes, by option."""
        return {}

    def check_ranks(self, number: int) -> None:
        """Checks that this number of ranks can share the batches of all variants.

        Raises:
            UserError: if they cannot; without a hint of --batch-size, since the sizes are from a list.
        """
        for config in self.configs[1:]:
            try:
                config.on(number)
            except UserError as error:
                raise UserError(error.message) from None

    def measure(self, nproc: int) -> dict[str, Any] | None:
        """Runs it on `nproc` ranks of this machine; returns the result if this process shows it, else None."""
        if not needs_launch(nproc):
            return self.run()
        measurement: dict[str, Any] = run_on_ranks("dlrmctl.bench.measurements:measure_on_rank", self.values(), nproc)
        return measurement

    def values(self) -> dict[str, Any]:
        """Returns plain values from which `measure_on_rank` makes the same measurement."""
        return {
            "command": self.command,
            "configs": [config.to_dict() for config in self.configs],
            "options": self.options,
        }

    @abstractmethod
    def run(self) -> dict[str, Any] | None:
        """Measures; every rank must call it. Returns the result if this rank shows it, else None."""

    @abstractmethod
    def show(self, result: dict[str, Any]) -> None:
        """Prints a result."""


@dataclass(frozen=True)
class StepMeasurement(Measurement):
    """Measures the training step of the settings and of variants of them.

    Attributes:
        trace: a file for the profiler's trace of some steps, whose waits are then counted.
    """

    command = "step"
    variants: Mapping[str, Config]
    trace: Path | None = None

    @classmethod
    def read(cls, flags: Flags, texts: Texts, *, quick: bool, trace: Path | None = None) -> Self:
        """Reads "rounds", "steps", "rows_cap", and lists of values of settings by the setting's name."""
        options: dict[str, Any] = {name: _whole("step", name, texts, quick) for name in _DEFAULTS["step"]}
        lists = {name: text for name in _LISTS if (text := texts.get(name)) is not None}
        variants = step_variants(_quick_settings("step", flags) if quick else flags, lists)
        return cls(list(variants.values()), {"variants": list(variants), **options}, variants, trace)

    @property
    def files(self) -> dict[str, Path]:
        return {} if self.trace is None else {"--trace": self.trace}

    def values(self) -> dict[str, Any]:
        return super().values() | {"trace": None if self.trace is None else str(self.trace)}

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.step import bench_step

        numbers = {name: self.options[name] for name in _DEFAULTS["step"]}
        return _on_ranks(self.configs[0], lambda ranks: bench_step(self.variants, ranks, trace=self.trace, **numbers))

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.step import show_bench_step

        show_bench_step(result)


@dataclass(frozen=True)
class ShampooMeasurement(Measurement):
    """Measures Shampoo on the MLPs."""

    command = "shampoo"

    @classmethod
    def read(cls, flags: Flags, texts: Texts, *, quick: bool) -> Self:
        """Reads "periods"."""
        return cls([_config("shampoo", flags, quick)], {"periods": _whole("shampoo", "periods", texts, quick)})

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.shampoo import bench_shampoo

        config = self.configs[0]
        return _on_ranks(config, lambda ranks: bench_shampoo(config, ranks, **self.options))

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.shampoo import show_bench_shampoo

        show_bench_shampoo(result)


@dataclass(frozen=True)
class ConvergenceMeasurement(Measurement):
    """Compares optimizers in whole trainings."""

    command = "convergence"

    @classmethod
    def read(cls, flags: Flags, texts: Texts, *, quick: bool) -> Self:
        """Reads "optimizers", "lrs" and "seeds"."""
        config = _config("convergence", flags, quick)
        listed = names_of("--optimizers", _text("convergence", "optimizers", texts, quick))
        names = [one_of("--optimizers", name, DENSE_OPTIMIZERS) for name in listed]
        lrs = positive_numbers("--lrs", _text("convergence", "lrs", texts, quick))
        seeds = _whole("convergence", "seeds", texts, quick)
        return cls([config], {"optimizers": names, "lrs": lrs, "seeds": seeds})

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.convergence import bench_convergence

        config = self.configs[0]
        return _on_ranks(config, lambda ranks: bench_convergence(config, ranks, **self.options))

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.convergence import show_bench_convergence

        show_bench_convergence(result)


@dataclass(frozen=True)
class EmbeddingsMeasurement(Measurement):
    """Compares kinds of tables in whole trainings."""

    command = "embeddings"

    @classmethod
    def read(cls, flags: Flags, texts: Texts, *, quick: bool) -> Self:
        """Reads "methods", "factors" and "seeds"."""
        config = _config("embeddings", flags, quick)
        methods = names_of("--methods", _text("embeddings", "methods", texts, quick))
        factors = positive_numbers("--factors", _text("embeddings", "factors", texts, quick))
        seeds = _whole("embeddings", "seeds", texts, quick)
        return cls([config], {"methods": methods, "factors": factors, "seeds": seeds})

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.embeddings import bench_embeddings, method_settings

        config = self.configs[0]
        for method in self.options["methods"]:
            method_settings(config, method)  # before ranks meet
        return _on_ranks(config, lambda ranks: bench_embeddings(config, ranks, **self.options))

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.embeddings import show_bench_embeddings

        show_bench_embeddings(result)


@dataclass(frozen=True)
class NoiseMeasurement(Measurement):
    """Measures the noise of gradients in a training."""

    command = "noise"

    @classmethod
    def read(cls, flags: Flags, texts: Texts, *, quick: bool) -> Self:
        """Reads "steps"."""
        return cls([_config("noise", flags, quick)], {"steps": _whole("noise", "steps", texts, quick)})

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.noise import bench_noise

        config = self.configs[0]
        return _on_ranks(config, lambda ranks: bench_noise(config, ranks, **self.options))

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.noise import show_bench_noise

        show_bench_noise(result)


@dataclass(frozen=True)
class DataMeasurement(Measurement):
    """Measures reading and preparing a store."""

    command = "data"
    path: Path | None

    @classmethod
    def read(cls, path: Path | None, texts: Texts, *, quick: bool) -> Self:
        """Reads "rounds"; `path` is a store to read instead of a generated one."""
        return cls([], {"rounds": _whole("data", "rounds", texts, quick), "quick": quick}, path)

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.data import bench_data

        return bench_data(self.path, **self.options)

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.data import show_bench_data

        show_bench_data(result)


@dataclass(frozen=True)
class BaselineMeasurement(Measurement):
    """Measures the fit of a logistic regression."""

    command = "baseline"

    @classmethod
    def read(cls, flags: Flags, texts: Texts, *, quick: bool) -> Self:
        """Reads "rounds" and "passes"."""
        ranks = launch_environment().world_size
        if ranks > 1:
            raise UserError(f"bench baseline is for one rank, not {ranks}", "omit the launcher")
        data = {"path", "dataset"} & set(flags)
        generated = {} if data else {"dataset": "synthetic", **({} if quick else {"synthetic_rows": _CRITEO_LIKE})}
        config = _config("baseline", {**generated, **flags}, quick)
        return cls([config], {name: _whole("baseline", name, texts, quick) for name in _DEFAULTS["baseline"]})

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.bench.baseline import bench_baseline

        config = self.configs[0]
        return _on_ranks(config, lambda ranks: bench_baseline(config, ranks, **self.options))

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.bench.baseline import show_bench_baseline

        show_bench_baseline(result)


@dataclass(frozen=True)
class CompressionMeasurement(Measurement):
    """Measures the compression of generated tables."""

    command = "compression"

    @classmethod
    def read(cls, texts: Texts, *, quick: bool) -> Self:
        """Reads "rows", "tables", "dim", "ratio" and "rounds"."""
        numbers: dict[str, Any] = {
            name: _whole("compression", name, texts, quick) for name in ("rows", "tables", "dim", "rounds")
        }
        ratio = positive_numbers("--ratio", _text("compression", "ratio", texts, quick).removesuffix("x"))[0]
        return cls([], {**numbers, "ratio": ratio})

    def run(self) -> dict[str, Any] | None:
        from dlrmctl.compress.bench import bench_compression

        return bench_compression(**self.options)

    def show(self, result: dict[str, Any]) -> None:
        from dlrmctl.compress.bench import show_bench_compression

        show_bench_compression(result)


@dataclass(frozen=True)
class AllMeasurements(Measurement):
    """Runs all benchmarks, or some, one after the other."""

    command = "all"
    parts: Sequence[Measurement]

    @classmethod
    def read(cls, flags: Flags, *, only: str | None, quick: bool) -> Self:
        """Reads which benchmarks to run.

        Args:
            flags: given settings, for all of them.
            only: commands with commas between them; None for all.
            quick: use small sizes, a few minutes in all.

        Raises:
            UserError: if there is more than one rank, or a command is unknown.
        """
        ranks = launch_environment().world_size
        if ranks > 1:
            raise UserError(f"bench all is for one rank, not {ranks}", "bench step --nproc N measures several")
        known: dict[str, Callable[[], Measurement]] = {
            "step": lambda: StepMeasurement.read(flags, {"precision": "fp32,medium"}, quick=quick),
            "shampoo": lambda: ShampooMeasurement.read(flags, {}, quick=quick),
            "convergence": lambda: ConvergenceMeasurement.read(flags, {}, quick=quick),
            "embeddings": lambda: EmbeddingsMeasurement.read(flags, {}, quick=quick),
            "noise": lambda: NoiseMeasurement.read(flags, {}, quick=quick),
            "data": lambda: DataMeasurement.read(None, {}, quick=quick),
            "baseline": lambda: BaselineMeasurement.read(flags, {}, quick=quick),
            "compression": lambda: CompressionMeasurement.read({}, quick=quick),
        }
        listed = list(known) if only is None else names_of("--only", only)
        names = [one_of("--only", name, tuple(known)) for name in listed]
        return cls([], {"only": names, "quick": quick}, [known[name]() for name in names])

    def run(self) -> dict[str, Any]:
        results, seconds = {}, {}
        for part in self.parts:
            started = time.monotonic()
            say(f"bench {part.command}")
            measured = part.run()
            assert measured is not None
            results[part.command] = tagged(part.command, measured, part.options)
            seconds[part.command] = time.monotonic() - started
        return {"results": results, "seconds": seconds}

    def show(self, result: dict[str, Any]) -> None:
        for part in self.parts:
            output.print(f"bench {part.command}, {result['seconds'][part.command]:.0f} s")
            part.show(result["results"][part.command])


def step_variants(flags: Flags, lists: Mapping[str, str]) -> dict[str, Config]:
    """Returns the settings, and for every other value in a list the settings with this value.

    Args:
        flags: given settings.
        lists: setting -> values with commas between them.

    Raises:
        UserError: for a value that the setting does not accept, naming the option of the list.
    """
    _refuse_start(flags)
    given = _DEFAULT_SETTINGS["step"]
    configs = {"base": resolve_typed(given, flags)}
    for name, text in lists.items():
        others = {key: value for key, value in flags.items() if key != name}
        for value in names_of(_LISTS[name], text):
            section = section_of(name)
            changed = given | {section: given.get(section, {}) | {name: value}}
            config = resolve(changed, others, file_name=_LISTS[name])
            if config not in configs.values():
                configs[f"batch {value}" if name == "batch_size" else value] = config
    return configs


def described(command: str, name: str) -> str:
    """Returns the defaults of an option, for its help."""
    full, quick = _DEFAULTS[command][name]
    return f"Default: {full}." if full == quick else f"Default: {full}; quick {quick}."


def _quick_settings(command: str, flags: Flags) -> dict[str, str]:
    """Returns the given settings over small defaults; generated examples unless data was given."""
    small = dict(_QUICK_SETTINGS[command])
    if "synthetic_rows" in small and not {"path", "dataset"} & set(flags):
        small["dataset"] = "synthetic"
    if "dim" in flags:  # the short bottom MLP would contradict it
        small.pop("bottom_mlp", None)
    return {**small, **flags}


def _config(command: str, flags: Flags, quick: bool) -> Config:
    _refuse_start(flags)
    return resolve_typed(_DEFAULT_SETTINGS[command], _quick_settings(command, flags) if quick else flags)


def _refuse_start(flags: Flags) -> None:
    """Measurements do not depend on trained weights."""
    for name in ("init_from", "init_embeddings"):
        if name in flags:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"bench measures new models, and does not take {flag}", f"omit {flag}")


def _text(command: str, name: str, texts: Texts, quick: bool) -> str:
    """Returns the text of an option as given, or its default in a full or a quick run."""
    typed = texts.get(name)
    return typed if typed is not None else _DEFAULTS[command][name][quick]


def _whole(command: str, name: str, texts: Texts, quick: bool) -> int:
    return whole_number(f"--{name.replace('_', '-')}", _text(command, name, texts, quick), at_least=1)


def measure_on_rank(
    command: str, configs: Sequence[Mapping[str, Any]], options: dict[str, Any], trace: str | None = None
) -> Any:
    """Runs a measurement, made from its `values`, on a rank that was started for it."""
    settings = [resolve(sections, {}, file_name="settings") for sections in configs]
    if command == "step":
        variants = dict(zip(options["variants"], settings, strict=True))
        return StepMeasurement(settings, options, variants, None if trace is None else Path(trace)).run()
    return (NoiseMeasurement if command == "noise" else ShampooMeasurement)(settings, options).run()


def _on_ranks(config: Config, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any] | None:
    from dlrmctl.ranks.group import process_group

    with process_group(config.train.device) as ranks:
        refuse_without_gpu(config, ranks.device.type)
        result = work(ranks)
        return {"ranks": ranks.world_size, **result} if ranks.is_main else None
