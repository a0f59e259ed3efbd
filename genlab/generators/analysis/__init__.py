"""What is measured of generators, so that a sampler may go by it."""
