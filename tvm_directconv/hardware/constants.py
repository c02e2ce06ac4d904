"""Constants of the analytical model that device files may override."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConstants:
    """What the analytical model takes from measurements rather than from a vendor's guide.

    ``scripts/fit_model`` fits them. ``generic.toml`` has those that hold for any core; the file of
    a core may have others.

    Attributes
    ----------
    loads_sustained : float
        Part of the rate of loads that a step reaches: those that miss the cache are repeated.
    operand_loads_sustained : float
        The same where each load is a part of a multiply-add.
    narrow_loads_sustained : float
        The same in narrower tiles of a row, which have fewer sums to hide their loads behind.
    load_cost : float
        Part of a load's cycles that stays where it hides behind multiply-adds: it takes power,
        and slots that another hyperthread of the core wants.
    latency_slack : float
        Just enough sums to fill the pipelines is not enough for a steady flow: how many times
        the latency of a multiply-add a step takes at least.
    stored_sums : float
        Factor of all cycles where sums leave the registers before they are complete.
    first_stored : float
        Part of the time that lines of the output come from cold memory which is waited for, where
        sums are stored before they are complete.
    memory_slower : float
        Cycles for a byte from memory over those for one from the third-level cache.
    contention : float
        Cycles that weights from cold memory and those from the second-level cache wait for each
        other, over those that the quicker of the two take.
    cache_filled : float
        Part of a cache that data may fill before some of it is replaced by what else passes.
    streams : int
        Streams of input that prefetchers follow; with more, pixels from farther than the first
        level take twice as long.
    cache_way_bytes : int
        Size of a way of the first-level cache, which is indexed within a page.
    round_distance_bytes : int
        Streams at multiples of this distance compete for the same places of the cache.
    visit_cycles : float
        Overhead of a visit to a tile.
    not_hidden : float
        Part of the shorter of two things done at once that is not hidden by the longer.
    """

    loads_sustained: float
    operand_loads_sustained: float
    narrow_loads_sustained: float
    load_cost: float
    latency_slack: float
    stored_sums: float
    first_stored: float
    memory_slower: float
    contention: float
    cache_filled: float
    streams: int
    cache_way_bytes: int
    round_distance_bytes: int
    visit_cycles: float
    not_hidden: float
