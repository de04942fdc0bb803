"""Builds the parts of a run from its settings: tables, model, optimizers, schedule; and compressed models."""
