"""Training: `run` is one call for all ranks, `train` is one rank from file to checkpoint, `step` one step of it.

`display` shows progress. `overhead` chooses Shampoo's settings for a share of the step's time.
"""
