"""Tuning logs of the package, one ``<device>.jsonl`` each; `tvm_directconv.logs` reads them."""
