"""Reference statistics: made once, kept, and found by name."""
