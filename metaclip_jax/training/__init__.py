"""Training: the train step, its loss and optimizer, checkpoints and metrics."""
