"""Plans memory per rank and time per step before anything is launched (`dlrmctl plan`).

`tables` and `dense` describe the model, `cluster` the ranks, `memory` computes what each rank needs, `remedies` what
would fit, `steptime` the time of a step; `plan` puts it together and `report` prints it.
"""
