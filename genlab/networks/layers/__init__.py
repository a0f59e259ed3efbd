"""The layers and blocks that networks are made of."""
