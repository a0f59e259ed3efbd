"""Settings for one's own data on this machine, found by a few steps of training."""
