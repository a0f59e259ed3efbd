"""Solvers: how a run gets from one noise level to the next."""
