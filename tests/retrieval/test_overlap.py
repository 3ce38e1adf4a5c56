"""Agreement of two searches, on cases small enough to count by hand."""

from __future__ import annotations

import numpy as np

from fastfill_ray.retrieval.overlap import overlap, reciprocal_ranks, same_first


def test_overlap_is_the_share_of_the_longer_list_that_both_have() -> None:
    assert overlap([[1, 2, 3, 4], [1], [], []], [[4, 3, 9, 8], [1, 2], [], ["a"]]).tolist() == [0.5, 0.5, 1.0, 0.0]


def test_first_hits_are_the_same_where_neither_has_any() -> None:
    assert same_first([[1, 2], [2], [], []], [[1, 3], [1], [], [1]]).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_reciprocal_ranks_are_weighed_by_what_was_taken_how_often() -> None:
    found = reciprocal_ranks([[5, 6], [5, 6], [5]], [{6: 1.0}, {5: 3.0, 7: 1.0}, {}])
    np.testing.assert_array_equal(found, [0.5, 0.75, np.nan])
