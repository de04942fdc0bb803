"""Solvers of convex finite sums such as logistic regression, to an accuracy that training a network never asks for.

An objective (`objective`) reads its rows (`rows`) in batches, from memory or from a stream, on one rank or on several.
Solvers are functions `solver(objective, start) -> Solution`: progressive-batching L-BFGS where parameters are many
(`lbfgs`), Newton's method exact (`newton`), sketched (`sketch`) or from every rank's own rows (`distributed`) where
they are few, and first-order methods to compare with (`first_order`). Everything is float64.
"""
