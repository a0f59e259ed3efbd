"""The forms in which a run keeps its samples, by name; ``--help`` reads it, no imports."""

FORMATS = ("png", "npy", "zip", "npz")
"""``png``: a folder of images; ``npy``: a folder of latents; ``zip`` and ``npz``: all in one file,
of either kind."""

ARCHIVES = ("zip", "npz")
"""Those that are one file."""
