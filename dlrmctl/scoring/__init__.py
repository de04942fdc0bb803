"""Predictions and what they are worth: metrics, `evaluate`, `compare`, `predict`, slices and calibration."""
