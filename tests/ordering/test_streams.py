"""Named streams draw what their numbers always drew."""

from __future__ import annotations

import numpy as np

from fastfill_ray.ordering.streams import Stream, generator


def test_the_numbers_of_streams_never_change() -> None:
    assert {stream.name: stream.value for stream in Stream} == {
        "HELD_OUT": 0,
        "BATCHES": 1,
        "FOLDS": 2,
        "LANDMARKS": 3,
    }


def test_a_stream_is_numpys_generator_of_the_seed_and_its_number() -> None:
    expected = np.random.default_rng([5, 1, 12]).permutation(9)
    assert generator(5, Stream.BATCHES, 12).permutation(9).tolist() == expected.tolist()
    assert generator(5, Stream.FOLDS).permutation(9).tolist() != expected.tolist()
