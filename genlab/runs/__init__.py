"""Sampling runs: plans, ledgers, input images, processes."""
