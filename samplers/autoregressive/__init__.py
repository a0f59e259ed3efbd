"""Sampling of autoregressive models: decoders that give the same image by different ways."""
