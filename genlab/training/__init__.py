"""One training loop on accelerate, one small objective a family."""
