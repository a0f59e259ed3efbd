"""The folder that a model is saved in."""
