"""Feature extractors: networks that turn images into what metrics compare."""
