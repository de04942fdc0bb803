"""Optimizers, averaging and schedules for any torch model; torch is the only dependency."""
