"""Evaluation: features, metrics, reference statistics, protocol cards and the leaderboard."""

if __name__ != "genlab.eval":
    raise ImportError("this folder is the package genlab.eval: write 'import genlab.eval'")
