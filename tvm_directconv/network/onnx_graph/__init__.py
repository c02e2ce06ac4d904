"""ONNX graphs brought into the forms that TVM's importer gets right, operator by operator.

``stage`` is the way in. ``graph`` walks through a model once, ``upgrading`` brings old ``nodes`` to
today's version, rules (one file for each family of operators) rewrite or refuse them, and
``convert`` hands what is left to TVM's converters and checks what they make of it.
"""
