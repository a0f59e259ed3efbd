"""Checks of a data set: its properties, and what prevents training on it."""
