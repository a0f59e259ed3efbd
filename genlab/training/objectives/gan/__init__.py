"""Training of generative adversarial networks."""
