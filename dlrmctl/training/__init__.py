"""The training loop: `train` from file to checkpoint, `step` one step of it, `display` what is seen meanwhile.

`overhead` chooses Shampoo's settings for a share of the step's time.
"""
