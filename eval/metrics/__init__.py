"""Metrics: numbers computed from features."""
