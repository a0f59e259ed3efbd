"""Guidance: denoisers around denoisers."""
