"""Optimizers for any torch model; torch is the only dependency."""
