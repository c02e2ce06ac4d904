"""Tuning logs: what was measured, one line of JSON each, and what of it a build goes by.

The log of a device is the file ``<folder>/<device>.jsonl``. Lines stand for themselves, so that
logs can be joined with ``cat``; they are only ever appended, under a lock, so that several tuners
can write at once and a crash costs one line at most.
"""
