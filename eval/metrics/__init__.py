"""Metrics: numbers made of features."""
