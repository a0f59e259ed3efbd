"""Image folders, zips and idx files; labels, checks, augmentation, pixels and pictures."""
