"""Measurements of generators that samplers use."""
