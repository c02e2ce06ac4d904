"""Whole networks: a model in, one library out, in blocked layouts from end to end."""
