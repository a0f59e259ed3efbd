"""Sampling runs: what they are to make, what is made of it, and where."""
