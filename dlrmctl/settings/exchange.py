"""The settings of what ranks exchange: `topk:4`, `dct:100`."""

import re

from dlrmctl.errors import UserError
from dlrmctl.settings.synonyms import nearest

PRECISIONS = ("fp16", "bf16", "int8")
_WHOLE_TABLES_ONLY = ("topk", "int8")
_TOPK = re.compile(r"topk:([0-9]{1,5})")
_DCT = re.compile(r"dct:([0-9]{1,9}(?:\.[0-9]{1,9})?)")


def table_codec(text: str) -> tuple[str, int] | None:
    """Reads `--compress-a2a`: the kind of codec, and K of top-k, 0 for others; None for none.

    Raises:
        UserError: if it is none of them.
    """
    word = text.strip().lower()
    if word == "none":
        return None
    if word in PRECISIONS:
        return word, 0
    if (found := _TOPK.fullmatch(word)) and int(found[1]):
        return "topk", int(found[1])
    close = "topk:4" if word.startswith("top") else nearest(word, ("none", *PRECISIONS))
    raise UserError(
        f"train.compress_a2a = {text!r} must be none, topk:K with K of at least 1, {', '.join(PRECISIONS[:-1])} or "
        f"{PRECISIONS[-1]}",
        f"did you mean {close!r}?" if close else None,
    )


def dense_ratio(text: str) -> float | None:
    """Reads `--compress-dense`: numbers per number sent; None for no compression.

    Raises:
        UserError: if it is no such setting.
    """
    word = text.strip().lower()
    if word == "none":
        return None
    if (found := _DCT.fullmatch(word)) and float(found[1]) >= 1:
        return float(found[1])
    raise UserError(
        f"train.compress_dense = {text!r} must be none, or dct:RATIO with a ratio of at least 1",
        "--compress-dense dct:100",
    )


def bytes_share(text: str, dim: int) -> float:
    """The bytes of a vector that is sent with this `--compress-a2a`, as a share of its float32 numbers."""
    codec = table_codec(text)
    if codec is None:
        return 1.0
    kind, k = codec
    if kind == "topk":
        return k * (3 if dim <= 256 else 4) / (4 * dim)
    return 0.3125 if kind == "int8" else 0.5  # int8: with a scale and an offset for 32 numbers


def sharding_with(compress_a2a: str, sharding: str) -> str:
    """How tables may be placed: as `--sharding` says, but whole for a codec that needs whole tables."""
    codec = table_codec(compress_a2a)
    return "table_wise" if codec and codec[0] in _WHOLE_TABLES_ONLY and sharding == "auto" else sharding


def check_exchange(
    *, compress_a2a: str, compress_warmup: int, compress_dense: str, dct_refresh: int | None, dim: int
) -> None:
    """Refuses settings of the exchange that contradict others.

    Raises:
        UserError: naming them.
    """
    codec, ratio = table_codec(compress_a2a), dense_ratio(compress_dense)
    if codec is not None and codec[1] > dim:
        raise UserError(
            f"train.compress_a2a = {compress_a2a} keeps {codec[1]} numbers of each vector, and embeddings.dim = {dim}",
            f"--compress-a2a topk:{max(1, dim // 4)}",
        )
    if codec is None and compress_warmup:
        raise UserError(
            f"train.compress_warmup = {compress_warmup} needs train.compress_a2a, not none",
            "--compress-a2a topk:4",
        )
    if ratio is None and dct_refresh is not None:
        raise UserError(
            f"train.dct_refresh = {dct_refresh} needs train.compress_dense, not none", "--compress-dense dct:100"
        )
