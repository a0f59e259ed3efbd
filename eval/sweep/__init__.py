"""Sweeps: many ways of sampling a model, scored alike, drawn as curves with their Pareto front."""
