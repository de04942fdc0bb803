"""Storage of compressed tables and lookups in them: one `Compressed` class per rule.

Importing a module registers its rules. This package imports all of them, so `rows.from_parts` reads every table.
"""

from dlrmctl.embeddings.compression.rules import headed, rows, sharing

__all__ = ["headed", "rows", "sharing"]
