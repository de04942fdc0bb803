"""Names that other programs use for our settings and values, for hints about unknown names."""

import difflib
from collections.abc import Collection

_RATES = ("dense_lr", "sparse_lr", "qr_lr")
# Names of settings and options, with `_`. A value may follow: "device cuda".
_NAMES: dict[str, tuple[str, ...]] = {
    "lr": _RATES,
    "learning_rate": _RATES,
    "adagrad": ("dense_optimizer adagrad",),
    "amp": ("precision bf16",),
    "arch_mlp_bot": ("bottom_mlp",),
    "arch_mlp_top": ("top_mlp",),
    "arch_sparse_feature_size": ("dim",),
    "batch": ("batch_size",),
    "bf16": ("precision bf16",),
    "bs": ("batch_size",),
    "checkpoint_dir": ("run_dir",),
    "checkpoint_freq": ("checkpoint_every",),
    "compression": ("target_ratio", "compress_ratio"),
    "cpu": ("device cpu",),
    "cuda": ("device cuda",),
    "data_dir": ("path",),
    "data_path": ("path",),
    "dataset_path": ("path",),
    "delimiter": ("schema",),
    "dense_arch_layer_sizes": ("bottom_mlp",),
    "early_stopping": ("patience",),
    "emb_dim": ("dim",),
    "embed_dim": ("dim",),
    "embedding_dim": ("dim",),
    "embedding_size": ("dim",),
    "eval_every": ("evaluations",),
    "eval_interval": ("evaluations",),
    "force": ("out",),
    "fp16": ("precision bf16",),
    "fp32": ("precision fp32",),
    "gpu": ("device cuda",),
    "gpus": ("nproc",),
    "hidden": ("bottom_mlp", "top_mlp"),
    "in_memory_binary_criteo_path": ("path",),
    "input": ("path",),
    "iterations": ("max_steps",),
    "load": ("resume",),
    "load_model": ("resume",),
    "log_dir": ("run_dir",),
    "log_interval": ("log_every",),
    "mini_batch_size": ("batch_size",),
    "mixed_precision": ("precision bf16",),
    "mlp": ("bottom_mlp", "top_mlp"),
    "n_epochs": ("epochs",),
    "nepochs": ("epochs",),
    "nproc_per_node": ("nproc",),
    "num_epochs": ("epochs",),
    "num_gpus": ("nproc",),
    "num_steps": ("max_steps",),
    "opt": ("dense_optimizer",),
    "optim": ("dense_optimizer",),
    "optimizer": ("dense_optimizer",),
    "logger": ("tracker",),
    "mlflow": ("tracker mlflow",),
    "tensorboard": ("tracker tensorboard",),
    "wandb": ("tracker wandb",),
    "out": ("run_dir",),
    "output": ("out", "run_dir"),
    "output_dir": ("out", "run_dir"),
    "over_arch_layer_sizes": ("top_mlp",),
    "print_freq": ("log_every",),
    "processes": ("nproc",),
    "qr_collisions": ("collisions",),
    "qr_flag": ("embedding qr",),
    "qr_operation": ("operation",),
    "random_seed": ("seed",),
    "ranks": ("nproc",),
    "restore": ("resume",),
    "save_dir": ("run_dir", "out"),
    "save_every": ("checkpoint_every",),
    "save_model": ("run_dir",),
    "sep": ("schema",),
    "separator": ("schema",),
    "steps": ("max_steps",),
    "store": ("path",),
    "target": ("schema",),
    "test_freq": ("evaluations",),
    "train_data": ("path",),
    "use_gpu": ("device cuda",),
    "val_every": ("evaluations",),
    "validation_freq_within_epoch": ("evaluations",),
    "warmup": ("warmup_steps",),
    "wd": ("weight_decay",),
    "workers": ("nproc",),
    "world_size": ("nproc",),
}
_VALUES = {
    "adam": "adamw",
    "amp": "bf16",
    "average": "add",
    "bfloat16": "bf16",
    "concatenate": "concat",
    "constant": "none",
    "dev": "validation",
    "eval": "validation",
    "float16": "bf16",
    "float32": "fp32",
    "fp16": "bf16",
    "generated": "synthetic",
    "gpu": "cuda",
    "hashing": "hash",
    "kaggle": "criteo",
    "linear": "polynomial",
    "mul": "mult",
    "multiply": "mult",
    "nccl": "cuda",
    "numpy": "npy",
    "product": "mult",
    "quotient-remainder": "qr",
    "random": "synthetic",
    "row": "row_wise",
    "rw": "row_wise",
    "single": "fp32",
    "sum": "add",
    "table": "table_wise",
    "tf32": "medium",
    "training": "train",
    "tsv": "criteo",
    "tw": "table_wise",
    "val": "validation",
    "valid": "validation",
    "vocab": "vocabulary",
}
_CLOSE = 0.6  # of difflib's ratio


def same_word(text: str, words: Collection[str]) -> str | None:
    """The word that equals `text`, ignoring case and `_` in place of `-`."""
    plain = _plain(text)
    return next((word for word in words if _plain(word) == plain), None)


def nearest(text: str, words: Collection[str]) -> str | None:
    """The word that `text` probably means, or None."""
    found = same_word(text, words) or same_word(_VALUES.get(_plain(text), ""), words)
    return found or next(iter(_close(text, words, most=1)), None)


def names_meant(name: str, known: Collection[str]) -> list[str]:
    """The known settings and options that an unknown name probably means, each with a value after it if implied.

    Args:
        name: as typed, with `-` or `_`.
        known: with `_`.
    """
    plain = _plain(name).replace("-", "_")
    if plain in known:
        return [plain]
    if other := [words for words in _NAMES.get(plain, ()) if words.split()[0] in known]:
        return other
    return _close(name, known, most=3)


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", "-")


def _close(text: str, words: Collection[str], most: int) -> list[str]:
    by_plain = {_plain(word): word for word in words}
    close = difflib.get_close_matches(_plain(text), list(by_plain), n=most, cutoff=_CLOSE)
    return [by_plain[word] for word in close]
