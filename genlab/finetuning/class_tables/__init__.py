"""Class tables of another size or other classes, made of a trained network."""
