"""Samplers: solvers, noise schedules and guidance for every diffusion model."""

if __name__ != "genlab.samplers":
    raise ImportError("this folder is the package genlab.samplers: write 'import genlab.samplers'")
