"""Id -> row in each of one or more tables: full, hash, quotient-remainder, mixed radix, Chinese remainder, heads.

`basic`, `radix` and `heads` define the partitions one feature at a time; `stages` computes the same for a whole batch,
in place.
"""
