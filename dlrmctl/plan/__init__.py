"""Plans memory per rank and time per step before anything is launched (`dlrmctl plan`).

`tables` and `dense` say what there is to place, `cluster` on what, `memory` how much each rank needs, `remedies` what
would fit, `steptime` how long a step may take; `plan` answers all of it and `report` shows it.
"""
