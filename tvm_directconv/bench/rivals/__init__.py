"""Other libraries, each in a well-defined form, and what compares them with ours.

This imports none of them: each runs in a process of its own.
"""
