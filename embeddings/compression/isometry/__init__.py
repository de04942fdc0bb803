"""Linear maps of rows to fewer coordinates that nearly keep all distances (arXiv:1601.00062).

`secants` holds the pairs whose distances count, `solvers` the optimization steps, `search` finds a map for a rank or a
bound, `compare` holds it against PCA and random projections.
"""
