"""How a GAN is sampled."""
