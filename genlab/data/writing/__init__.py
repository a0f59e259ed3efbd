"""Samples and pictures as files."""
