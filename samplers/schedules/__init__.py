"""Noise schedules: which noise levels a run visits."""
