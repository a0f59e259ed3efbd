"""Objectives of training, one a family: networks, losses, and what comes out."""
