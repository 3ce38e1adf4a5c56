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
    PROXIES = 5  # train pairs that stand for queries in the order `expected_gain`
    KNOT_QUERIES = 7  # queries that calibrations along a curve are fitted on
    PREDICTED_PAIRS = 9  # audit items that count as pairs where a run's curve is predicted
    SEARCH_QUERIES = 13  # queries that candidates are compared on
    CALIBRATION_QUERIES = 17  # queries that a version's calibration is fitted on


def generator(seed: int, stream: Stream, *more: int) -> np.random.Generator:
    """The generator of one stream; `more` tells apart what is drawn in it, such as the number of an epoch."""
    return np.random.default_rng([seed, int(stream), *more])
