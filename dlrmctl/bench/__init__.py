"""Measurements: ratios of variants alternated in one run, beside the limits of the machine."""
