"""A run's directory: settings, checkpoints, metrics, where it stands; and opening it again to score."""
