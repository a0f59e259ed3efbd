"""Readers of official checkpoints, one format each."""
