"""Compiled code without Python and without TVM's runtime.

``directconv.c`` is the C runtime: errors, threads, weights from a file. ``network.c`` runs the
steps of a network. Both go into the folders that :mod:`tvm_directconv.emit.c_folder` writes;
``folder/`` has the templates of what else is in these. ``runner.c`` is a program that loads any
exported library and runs one of its functions; :mod:`tvm_directconv.deploy.runner` builds it and
runs it, through an emulator where the library is for another processor.
``counter.c`` is a plugin of that emulator, with which :mod:`tvm_directconv.deploy.counter` counts
the instructions that a kernel executes.
"""
