"""Run directories: settings, checkpoints, metrics and state, and opening runs for scoring."""
