"""Seeds as people type them."""

from __future__ import annotations

from everram.runtime.errors import InvalidArgument

SEED_MAX = (1 << 63) - 1
SEEDS_MAX = 10_000_000
"""In one go: more are a typing error."""


def check_seed(seed: int) -> int:
    """Raises InvalidArgument."""
    if not 0 <= seed <= SEED_MAX:
        raise InvalidArgument(f"{seed} is no seed: choose 0 to {SEED_MAX}")
    return seed


def parse_seeds(text: str) -> range:
    """`A..B`, or one. Raises InvalidArgument."""
    first, dots, last = text.partition("..")
    try:
        seeds = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise InvalidArgument(f"{text!r} is not a range of seeds such as 1..200") from None
    if not seeds:
        raise InvalidArgument(f"{text!r} has no seed in it: give A..B with A <= B")
    check_seed(seeds[0])
    check_seed(seeds[-1])
    if len(seeds) > SEEDS_MAX:
        raise InvalidArgument(f"{text!r} are {len(seeds)} seeds: choose at most {SEEDS_MAX} in one go")
    return seeds
