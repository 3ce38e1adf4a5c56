"""Every random draw by name: a stream per purpose, so that what one draws never depends on what another has drawn."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """The streams under one seed. A number is never changed or used again: that would change what old seeds draw."""

    HELD_OUT = 0  # train pairs that are kept aside for the model of residuals
    BATCHES = 1  # the order of the train pairs in an epoch; the epoch follows the number
    FOLDS = 2  # folds of the pairs, for residuals of closed-form maps
    LANDMARKS = 3  # landmarks of a kernel map, and the rows that choose its width
    # 5, 7, 9, 13 and 17 drew queries and proxies before these went by the hashes of their ids.


class HashSeed(IntEnum):
    """What a seeded hash of ids decides; the number is added to the seed, so that one use says nothing of another."""

    ORDER = 0  # the order `random`
    STAND_FOR_PAIRS = 1  # items of a shadow gallery that count as pairs
    SPLIT = 2  # the split of pairs
    SHUFFLE = 3  # the order in which queries, proxies and fit queries are taken
    PAIRS = 4  # which items are pairs


def generator(seed: int, stream: Stream, *more: int) -> np.random.Generator:
    """The generator of one stream; `more` tells apart what is drawn in it, such as the number of an epoch."""
    return np.random.default_rng([seed, int(stream), *more])
