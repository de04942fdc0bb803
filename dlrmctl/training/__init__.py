"""Training: `run` starts a training on all ranks, `train` is the loop on one rank, and `step` is a single step.

`display` shows progress, `seeds` trains with several seeds, and `overhead` implements --shampoo-overhead.
"""
