"""Tables over ranks, by TorchRec.

`placement` plans, `memory` counts bytes, `fused` adds row-wise AdaGrad, `shard` shards a model, and `local` looks up
rows without TorchRec's exchange if one rank holds every table.
"""
