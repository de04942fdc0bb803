"""Tables over ranks: everything that touches TorchRec's insides.

`placement` plans, `memory` counts bytes, `fused` gives tables their row-wise AdaGrad, `shard` puts it together, and
`local` looks rows up without TorchRec's exchange where one rank holds every table.
"""
