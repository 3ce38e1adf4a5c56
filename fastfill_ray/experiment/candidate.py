"""A candidate: one way to run a backfill, and what one map makes of the items.

Legend: Q queries, N items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.types import F32, Metric


@dataclass(frozen=True)
class Candidate:
    """One way to run a backfill. weight: the aligned score's share of a stale score; below 1 it is `fused`."""

    method: str
    weight: float
    policy: str
    form: Form

    @property
    def stale_mode(self) -> str:
        return "aligned" if self.weight == 1 else "fused"


@dataclass(frozen=True)
class View:
    """One map as a scene sees it.

    stale: (Q, N) scores with aligned vectors, norms matched. priorities: {policy: (N,)}, `random` always among them.
    """

    stale: F32
    priorities: Mapping[str, F32]


# A map whose aligned vectors keep the norms that it gives them is another view, and so another candidate: under l2 and
# inner product norms may say something. Measured on digits (l2): overlap@10 of the curve 88.6 kept, 86.3 matched.
KEPT = ", norms kept"


def views_of(method: str, metric: Metric) -> tuple[str, ...]:
    """Names of a map's views: as it is called, norms matched; and, where norms count, with its own norms kept."""
    return (method,) if metric == "cosine" else (method, method + KEPT)


def kept_views(views: Iterable[str]) -> tuple[str, ...]:
    """Those that keep their norms."""
    return tuple(view for view in views if view.endswith(KEPT))


def map_of(view: str) -> tuple[str, bool]:
    """The map behind a view's name, and whether its norms are kept."""
    return view.removesuffix(KEPT), view.endswith(KEPT)
