"""Relax passes, one to a file; :mod:`tvm_directconv.network.pipeline` puts them together."""
