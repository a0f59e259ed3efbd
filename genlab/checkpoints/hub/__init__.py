"""Models of the Hugging Face hub: their names, the copies kept here, and how one is fetched."""
