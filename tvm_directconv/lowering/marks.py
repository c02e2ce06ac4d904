"""The annotations with which schedules talk to the passes.

=====================  ======================================================================
``directconv.tile``    on the loop over register tiles: how many tiles at its beginning and at
                       its end see padding or are narrower than the others, and how many columns
                       the last tile takes over from the one before, ``[left, right, moved]``
``directconv.column``  on the loop over the columns of a tile
``directconv.tail``    on the loop over tasks: where its last tiles of output channels have fewer
                       vectors than the others. ``[run, tiles, narrow, vectors]``: the tile changes
                       after every `run` tasks, and of `tiles`, the last `narrow` have so many
``directconv.vector``  on the loop over the vectors of such a tile
``directconv.tap``     on the loop over kernel columns: unrolled in those border tiles, so that
                       which products are with padding is known when compiling
``directconv.next``    on the loop over register tiles and on loops within a tile: the weights that
                       the next round of all tiles needs are fetched meanwhile, in one of these
                       loops. ``[vectors, distance, length, tasks]``: they are so many stretches of
                       `length` elements, `distance` apart, and tasks in succession share them
``directconv.pixels``  on a loop within a tile: pixels of the next tile are fetched in it.
                       Its value is a list: elements so far beyond what the first product of each
                       column reads
``directconv.step``    on a loop of which each round is one step: one input channel, one kernel
                       position, all products of the tile. Its value says how many sums, spread
                       over the tile, LLVM must finish before the next step; 0 for all
``directconv.lanes``   on an unrolled loop of steps: where these read neighbouring elements of the
                       input, so many are loaded as one vector, of which each step uses a lane
``directconv.base``    on an unrolled loop of steps: what these read of the input is addressed from
                       one register on
=====================  ======================================================================
"""

TILE = "directconv.tile"
COLUMN = "directconv.column"
TAIL = "directconv.tail"
VECTOR = "directconv.vector"
TAP = "directconv.tap"
NEXT = "directconv.next"
PIXELS = "directconv.pixels"
STEP = "directconv.step"
LANES = "directconv.lanes"
BASE = "directconv.base"
SHAPES = "directconv.shapes"
"""Function attribute: shapes of the parameters as callers see them, where they differ."""

DENORMALS = "directconv.denormals"
"""Function attribute: one of :data:`.denormals.MODES`, the first if there is none."""
