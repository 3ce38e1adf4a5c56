"""Held-out traffic as queries: each is an event of it, so that a plain mean over them is one over the traffic.

Legend: R rows with their traffic, n events.
"""

from __future__ import annotations

import numpy as np

from fastfill_ray.types import F64, I64, U64


def draw_events(traffic: F64, hashes: U64, most: int) -> I64:
    """Rows (n,) in proportion to their traffic, ascending: a systematic sample (Madow, 1949).

    A row comes up as often as its share says, give or take one, and what is asked once in a while comes up by chance.
    Where there is less traffic than `most`, there are no more events than that, but one per row at least: what was
    asked ten times is not known as well as if it were a thousand. Traffic that is shares counts in units of the least.

    Args:
        traffic: (R,) above 0. hashes: (R,) that order the rows along which the sample steps, so that what stands
            beside each other in a log is not drawn alike.
    """
    if not len(traffic):
        return np.empty(0, np.int64)
    asked = traffic.sum() / min(1.0, traffic.min())
    count = min(most, max(len(traffic), round(min(asked, most))))
    order = np.argsort(hashes, kind="stable")
    ends = np.cumsum(traffic[order])
    steps = (np.arange(count) + 0.5) / count * ends[-1]
    rows: I64 = np.sort(order[np.searchsorted(ends, steps, side="right")])
    return rows
