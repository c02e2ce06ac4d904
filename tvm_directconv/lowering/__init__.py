"""From a scheduled convolution to code: TVM's lowering with passes of our own.

TVM's own pipeline would put the register tile into a workspace, compute products with padding,
and let LLVM reorder the inner loop until the accumulators no longer fit the registers. The
passes here keep what the schedule decided. Schedules talk to them by annotations of loops, which
``marks`` lists; ``pipeline`` has the passes in their order.
"""
