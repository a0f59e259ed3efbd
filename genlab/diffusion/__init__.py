"""The denoiser contract: preconditioning, condition, noise, training losses."""
