"""The leaderboard: records that merge in git, ranking of scores made alike, tables and the page."""
