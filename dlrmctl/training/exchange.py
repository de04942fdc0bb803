"""What compression saves of the messages between ranks: counted in training, told at its end."""

from dataclasses import astuple
from typing import Any

from dlrmctl.assembly.model import Model
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.state import Exchanged
from dlrmctl.settings.config import Config
from dlrmctl.settings.exchange import dense_ratio, table_codec


def counted_exchange(model: Model, ranks: Ranks) -> Exchanged:
    """Sums the counters of all ranks since their processes started. Every rank must call it."""
    tables, dense = model.sharded.exchange, model.thresholded
    if tables is None and dense is None:
        return Exchanged()
    mine = Exchanged(
        tables_raw=tables.raw_bytes if tables else 0,
        tables_sent=tables.sent_bytes if tables else 0,
        dense_raw=dense.raw_bytes if dense else 0,
        dense_sent=dense.sent_bytes if dense else 0,
        numbers=dense.numbers if dense else 0,
        kept=dense.kept if dense else 0,
    )
    return sum((Exchanged(*sums) for sums in ranks.gather(astuple(mine))), Exchanged())


def exchange_results(config: Config, exchanged: Exchanged) -> dict[str, Any]:
    """Plain values for results.json; nothing for what was not compressed.

    Bytes are of the messages of all ranks, with the part of a message that stays on its rank.
    """
    results: dict[str, Any] = {}
    if exchanged.tables_sent:
        results["tables"] = {
            "codec": config.train.compress_a2a,
            "raw_bytes": exchanged.tables_raw,
            "sent_bytes": exchanged.tables_sent,
            "ratio": exchanged.tables_raw / exchanged.tables_sent,
        }
    if exchanged.dense_sent:
        results["dense"] = {
            "codec": config.train.compress_dense,
            "raw_bytes": exchanged.dense_raw,
            "sent_bytes": exchanged.dense_sent,
            "ratio": exchanged.dense_raw / exchanged.dense_sent,
            "numbers_per_number_sent": exchanged.numbers / exchanged.kept,
        }
    return results


def about_exchange(config: Config, ranks: Ranks) -> list[str]:
    """Lines to print before training about compression that has no effect, or an unwanted one."""
    train, lines = config.train, []
    flags = [
        f"{flag} {text}"
        for flag, text, given in (
            ("--compress-a2a", train.compress_a2a, table_codec(train.compress_a2a)),
            ("--compress-dense", train.compress_dense, dense_ratio(train.compress_dense)),
        )
        if given is not None
    ]
    if flags and ranks.world_size == 1:
        lines.append(f"{' and '.join(flags)}: one rank exchanges nothing, so nothing is compressed")
    elif dense_ratio(train.compress_dense) is not None and config.optim.dense_optimizer == "shampoo":
        lines.append(
            "--compress-dense delays most gradients, and Shampoo's statistics see them in bursts; "
            "--dense-optimizer adagrad takes no statistics of that kind"
        )
    return lines
