"""Adapters: what fine-tuning has changed of a model, in folders that are kept and shared."""
