"""Convolutions of known networks, one file each; :mod:`tvm_directconv.workload` reads them."""
