"""Seeds that follow from others, by one rule, so that any seed of 64 bits can be given and no
generator overflows.
"""

from __future__ import annotations

import hashlib

from taskdistill.errors import BadInput

SEEDS = 2**64
"""Seeds are whole numbers from 0 up to this one, which is not among them."""
DERIVED = 2**63
"""Derived seeds are below this: torch and numpy take them all, and so do signed integers of 64
bits.
"""
STEP_STRIDE = 7_919
"""Distance of the seeds of two recipes' seeds, in steps."""
MICRO_BATCH_STRIDE = 1_000_003
"""Distance of the seeds of two steps, in micro-batches."""
READ_BITS = 2**32
"""torch's generator on a CPU reads the lowest 32 bits of its seed and no more."""


def check_seed(seed: int) -> int:
    """Refuse what is no seed. Raises BadInput if it is no whole number of 64 bits."""
    if not 0 <= seed < SEEDS:
        raise BadInput(f"seed {seed} is no whole number of 64 bits; give one from 0 to {SEEDS - 1}")
    return seed


def hash_64(text: str) -> int:
    """Return the first 64 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hash_unit(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return hash_64(text) / 2.0**64


def derive_seed(seed: int, number: int, stride: int) -> int:
    """Return the seed of one of many things that share a seed.

    `number`: which of them, from 0. `stride`: seeds that lie between those of neighbouring `seed`.
    Returns a number from 0 to 2**63 - 1; `seed * stride + number` where that is small enough.
    """
    return (seed * stride + number) % DERIVED


def torch_seed(seed: int) -> int:
    """Return the seed of a torch generator for a recipe's seed, such that all of its 64 bits count.

    `seed`: from 0 to 2**64 - 1. Returns the seed itself if it has 32 bits or fewer, otherwise 63
    bits of its hash. Raises BadInput if it is no seed.
    """
    if check_seed(seed) < READ_BITS:
        return seed
    return hash_64(f"seed {seed}") % DERIVED


def later_seed(seed: int, distance: int) -> int:
    """Return the seed some places after another, for repetitions of an experiment.

    `seed`: from 0 to 2**64 - 1. Returns from 0 to 2**64 - 1, going on at 0 behind the last.
    """
    return (seed + distance) % SEEDS
