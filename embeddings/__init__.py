"""Embedding tables: from ids to rows, from rows to vectors, and tables over ranks.

`partitions` maps an id to rows, `tables.FeatureTable` describes the tables of one feature, `collection` is the
module: ids -> `ids.RowIds` -> lookups -> `combine.Combiner` -> vectors. `sharding` distributes its tables over ranks
with TorchRec and trains them; `compression` makes trained tables smaller.
"""
