"""What `--quick` makes smaller: numbers of rounds, and settings that were not typed."""

from collections.abc import Mapping

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
