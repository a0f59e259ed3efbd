"""The zoo: official checkpoints by name, how they are fetched, and which are here."""
