"""How ids become rows of tables, how rows combine into vectors, and where tables live.

`partitions` maps an id to rows, `tables.FeatureTable` describes the tables of one feature, `collection` is the
module: ids -> `ids.RowIds` -> lookups -> `combine.Combiner` -> vectors. `sharding` distributes its tables over ranks by
TorchRec and trains them; `compression` makes trained tables smaller.
"""
