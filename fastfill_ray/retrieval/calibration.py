"""What a stale score becomes before it stands beside new ones: forms of calibration, fitted for the objective.

A stale item at position u of the order (0: re-embedded first, 1: last) is served at scale * score + offset + slope * u.
In an index the same thing is one (scale, offset) per wave, with u at the wave's middle.

Legend: Q queries, N items.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.mixed_ranks import MixedRanks, MixedState, RelevantScores, SortedScores
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, F64, Bools, Model

Form = Literal["identity", "offset", "offset_by_wave", "scale_offset", "scale_offset_by_wave"]
# The simplest first.
FORMS: tuple[Form, ...] = ("identity", "offset", "offset_by_wave", "scale_offset", "scale_offset_by_wave")
# Those whose scores are moved by offsets alone.
NO_SCALE = tuple(form for form in FORMS if not form.startswith("scale"))

# Steps of the search, in units of the typical gap between a stale score and the new one that replaces it (offset,
# slope) and as a factor (scale). Halved when nothing near is better; two halvings are fine enough.
_STEP, _FACTOR, _HALVINGS = 1.0, 1.4, 2
# A change must better the objective by this much: noise on a plateau must not carry the parameters away.
_LEAST_GAIN = 1e-4

# Queries that a fit looks at: more move the parameters no further, only the clock. Where a query says yes or no, or
# little more, it takes more of them.
_FIT_QUERIES, _FIT_QUERIES_YES_OR_NO = 300, 1000
_YES_OR_NO = ("cmc@1", "cmc@5", "recall@1", "mrr")


def fit_queries(metric: str) -> int:
    """How many queries a fit for a metric looks at, at the most."""
    return _FIT_QUERIES_YES_OR_NO if metric in _YES_OR_NO else _FIT_QUERIES


class Calibration(Model):
    """Served score = scale * score + offset."""

    scale: float = Field(default=1.0, gt=0)
    offset: float = 0.0


@dataclass(frozen=True)
class OrderCalibration:
    """A calibration for every place in the order; the default serves stale scores as they are."""

    scale: float = 1.0
    offset: float = 0.0
    slope: float = 0.0

    def at(self, position: float) -> Calibration:
        """The calibration of a segment whose items stand about this place in the order, 0 to 1."""
        return Calibration(scale=self.scale, offset=self.offset + self.slope * position)

    def apply(self, stale: F32, position: F32) -> F32:
        """Scores (Q, N) as they are served; position (N,)."""
        served: F32 = np.float32(self.scale) * stale
        served += np.float32(self.offset) + np.float32(self.slope) * position.astype(np.float32)
        return served

    def between(self, other: OrderCalibration, share: float) -> OrderCalibration:
        """Linear interpolation, `share` of the way to `other`."""
        ends = zip((self.scale, self.offset, self.slope), (other.scale, other.offset, other.slope), strict=True)
        return OrderCalibration(*((1 - share) * a + share * b for a, b in ends))


@dataclass(frozen=True)
class MixedScores:
    """A gallery in the middle of a backfill: every item's score with either vector, and which of them counts.

    stale, new: (Q, N) scores with the items' stale and new vectors; -inf excludes an item from a query.
    is_new: (N,) which items are new. position: (N,) float32, place in the order, 0 to 1.
    """

    stale: F32
    new: F32
    is_new: Bools
    position: F32

    def under(self, calibration: OrderCalibration) -> F32:
        """Scores (Q, N) as they are served: new items' as they are, stale ones' calibrated."""
        scores = calibration.apply(self.stale, self.position)
        scores[:, self.is_new] = self.new[:, self.is_new]
        return scores


Fates = Sequence[tuple[float, Bools | None]]
"""Cases, each with its probability: (P,) whether each relevant item is new to its own query; None: as in the state."""
AS_IN_THE_STATE: Fates = ((1.0, None),)


def fit_calibration(
    scores: MixedScores,
    relevant: RelevantItems,
    metric: str,
    form: Form,
    starts: Sequence[OrderCalibration] = (),
    in_order: tuple[SortedScores, SortedScores] | None = None,
    fates: Fates = AS_IN_THE_STATE,
) -> OrderCalibration:
    """The parameters under which the mixed gallery retrieves best by the mean of `metric`: a pattern search.

    Args:
        relevant: of the Q queries.
        form: which parameters may move.
        starts: further points to start from, such as the fit at a fraction nearby.
        in_order: the stale and the new scores where they are sorted already.
        fates: where it is chance whether the relevant items are new themselves: the mean is the expected one.

    Returns:
        The identity where nothing or everything is stale and the form has no slope: no ranking changes then.
    """
    stale, new, is_new = scores.stale, scores.new, scores.is_new
    of_items = [is_new if are_new is None else are_new for _, are_new in fates]
    if form == "identity" or (is_new.all() and all(each.all() for each in of_items)):
        return OrderCalibration()
    some_new = is_new.any() or any(each.any() for each in of_items)
    if not some_new and not form.endswith("by_wave"):
        return OrderCalibration()
    finite = np.isfinite(stale) & np.isfinite(new)
    of_relevant = stale[relevant.owner, relevant.items]
    of_relevant = of_relevant[np.isfinite(of_relevant)]
    if not finite.any() or len(of_relevant) == 0:
        return OrderCalibration()
    gap = float(np.median(np.abs(new[finite] - stale[finite]))) or 1.0
    # A score changes its spread about the mean of the relevant ones: where rankings are decided, scale and offset then
    # move apart. About the mean of all, no single step betters both.
    center = float(of_relevant.mean())
    stale_in_order, new_in_order = in_order or (SortedScores.of(stale), SortedScores.of(new))
    state = MixedState(stale_in_order, new_in_order, is_new, scores.position)
    of_relevant_items = RelevantScores.of(stale_in_order, new_in_order, relevant)
    ranks = [(p, MixedRanks(state, of_relevant_items, are_new)) for p, are_new in fates if p > 0]
    known: dict[OrderCalibration, float] = {}

    def value(at: OrderCalibration) -> float:
        if at not in known:
            known[at] = sum(p * of.mean(metric, at.apply, in_order=at.slope == 0) for p, of in ranks)
        return known[at]

    def restrict(at: OrderCalibration) -> OrderCalibration:
        """A start of a richer form, as near as this form comes to it."""
        scale = at.scale if form.startswith("scale") else 1.0
        offset = at.offset if scale == at.scale else 0.0
        return OrderCalibration(scale, offset, at.slope if form.endswith("by_wave") else 0.0)

    best = max((restrict(start) for start in (OrderCalibration(), *starts)), key=value)
    # The offset first, then all: coarse steps of the scale would lead away from where the offset alone would end.
    parts: tuple[Form, ...] = ("offset",) if form == "offset" else ("offset", form)
    for part, halving in itertools.product(parts, range(_HALVINGS + 1)):
        step, factor = gap * _STEP / 2**halving, _FACTOR ** (1 / 2**halving)
        moved = True
        while moved:
            moved = False
            for near in _near(best, part, step, factor, center):
                if value(near) > value(best) + _LEAST_GAIN:
                    best, moved = near, True
                    break
    return best


def expected_values(
    scores: MixedScores,
    relevant: RelevantItems,
    metric: str,
    calibration: OrderCalibration,
    in_order: tuple[SortedScores, SortedScores],
    fates: Fates,
) -> F64:
    """The expected value of a metric per query (Q,), NaN where nothing is relevant; see ``fit_calibration``."""
    state, of_items = MixedState(*in_order, scores.is_new, scores.position), RelevantScores.of(*in_order, relevant)
    served = state.served(calibration.apply, in_order=calibration.slope == 0)
    values = np.zeros(len(scores.stale))
    for probability, are_new in fates:
        ranks = MixedRanks(state, of_items, are_new).ranks(served)
        values += probability * metrics_of(relevant, ranks, [metric])[metric]
    return values


def _near(at: OrderCalibration, form: Form, step: float, factor: float, center: float) -> list[OrderCalibration]:
    neighbours = [OrderCalibration(at.scale, at.offset + sign * step, at.slope) for sign in (1, -1)]
    if form.startswith("scale"):
        for scale in (at.scale * factor, at.scale / factor):
            neighbours.append(OrderCalibration(scale, at.offset + (at.scale - scale) * center, at.slope))
    if form.endswith("by_wave"):
        # The slope turns about the middle of the order.
        neighbours += [
            OrderCalibration(at.scale, at.offset - sign * step / 2, at.slope + sign * step) for sign in (1, -1)
        ]
    return neighbours
