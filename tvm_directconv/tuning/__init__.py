"""Tuning: which points of the space of block sizes are tried, measured and kept."""
