"""How a compressed table is stored and gives its rows back: one `Compressed` class per rule.

A rule is registered when its module is loaded; loading this room loads all of them, so that `rows.from_parts` reads
every table that was ever written.
"""

from dlrmctl.embeddings.compression.rules import headed, rows, sharing

__all__ = ["headed", "rows", "sharing"]
