"""Sends settings, metrics and results of a run to TensorBoard, MLflow or Weights & Biases."""
