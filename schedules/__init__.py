"""Schedules and device files, installed as ``tvm_directconv.schedules``."""
