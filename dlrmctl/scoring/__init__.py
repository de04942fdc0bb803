"""Predictions and their quality: metrics, `evaluate`, `compare`, `predict`, slices, calibration, `runs` and `plot`."""
