"""From a model and batches to trained parameters: the pure step, the loop, checkpoints, metrics."""
