"""The training loop: steps, averages, checkpoints, logs."""
