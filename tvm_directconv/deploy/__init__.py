"""Running exported kernels without Python and without TVM's runtime.

``runner.c`` is a small program that loads an exported library and runs one of
its kernels; :mod:`tvm_directconv.deploy.runner` builds it and runs it, through
an emulator where the library is for another processor.
"""
