"""The baseline of a data set: logistic regression, fitted to the optimum.

`run` starts the ranks; `fit` is the work of each: `examples` turns batches of a split into sparse rows, `path` chooses
the L2 penalty, and the result is written as a run. `report` prints it, and `beside` finds it again for `train`.
"""
