"""Tables over ranks, by TorchRec.

`placement` plans, `memory` counts bytes, `fused` adds row-wise AdaGrad, `shard` shards a model, `one_hot`
sends rows to the ranks that hold them, and `local` looks up rows without any exchange if one rank holds every table.
"""
