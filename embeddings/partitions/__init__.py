"""Id -> row in each of one or more tables: full, hash, quotient-remainder, mixed radix, Chinese remainder, heads.

`basic`, `radix` and `heads` define the partitions of one feature; `stages` computes the same for a whole batch, in
place.
"""
