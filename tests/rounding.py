"""Equality of floats that were computed twice: processors, batches and threads round the same sums in other ways."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_equal_up_to_rounding(found: Any, expected: Any) -> None:
    """Equal but for a thousand roundings of the expected element type, relative to the largest value.

    float32: 1.2e-4 of it, float64: 2.2e-13. What a changed row, seed or weight does is far larger.
    """
    expected = np.asarray(expected)
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    atol = 1000 * float(np.finfo(expected.dtype).eps) * largest
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
