"""Processors: what is known about them, how code for them is asked for, and that at hand."""
