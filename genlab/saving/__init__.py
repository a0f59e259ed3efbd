"""The folder that a model is kept in."""
