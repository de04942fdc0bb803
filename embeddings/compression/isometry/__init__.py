"""Linear maps of rows to fewer coordinates that nearly keep all distances (arXiv:1601.00062).

`secants` holds the pairs of rows, `solvers` the optimization steps, `search` finds a map for a rank or a bound,
`compare` compares it with PCA and random projections.
"""
