"""Publish a model on the hub: which of its files, with which card, and how it gets there."""
