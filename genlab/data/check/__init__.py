"""What a data set is like, and what stands in the way of training on it."""
