"""Measuring convolutions: peak, baselines, timing and reports."""
