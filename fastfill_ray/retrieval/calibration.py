"""What a stale score becomes before it stands beside new ones: forms of calibration, fitted for the objective.

A stale item at position u of the order (0: re-embedded first, 1: last) is served at scale * score + offset + slope * u.
In an index the same thing is one (scale, offset) per wave, with u at the wave's middle.

Legend: Q queries, N items.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.ranking import ranks_of
from fastfill_ray.retrieval.relevance import Truth
from fastfill_ray.types import F32, Bools, Model

Form = Literal["identity", "offset", "offset_by_wave", "scale_offset", "scale_offset_by_wave"]
FORMS: tuple[Form, ...] = ("identity", "offset", "offset_by_wave", "scale_offset", "scale_offset_by_wave")
# Steps of the search, in units of the typical gap between a stale score and the new one that replaces it (offset,
# slope) and as a factor (scale). Halved when nothing near is better; two halvings are fine enough.
_STEP, _FACTOR, _HALVINGS = 1.0, 1.4, 2
# A change must better the objective by this much: noise on a plateau must not carry the parameters away.
_LEAST_GAIN = 1e-4


@dataclass(frozen=True)
class Served:
    """Fitted parameters; the default serves stale scores as they are."""

    scale: float = 1.0
    offset: float = 0.0
    slope: float = 0.0

    def __call__(self, stale: F32, position: F32) -> F32:
        """Scores (Q, N) as they are served; position (N,)."""
        shift = np.float32(self.offset) + np.float32(self.slope) * position.astype(np.float32)
        return np.float32(self.scale) * stale + shift[None, :]

    def between(self, other: Served, share: float) -> Served:
        """Linear interpolation, `share` of the way to `other`."""
        mine, theirs = (self.scale, self.offset, self.slope), (other.scale, other.offset, other.slope)
        return Served(*((1 - share) * a + share * b for a, b in zip(mine, theirs, strict=True)))


def mixed(
    stale: F32,
    new: F32,
    is_new: Bools,
    position: F32,
    served: Served,
) -> F32:
    """Scores (Q, N) of a gallery in which `is_new` (N,) items are new and the others are served as given."""
    scores = served(stale, position)
    scores[:, is_new] = new[:, is_new]
    return scores


def fit_served(
    stale: F32,
    new: F32,
    is_new: Bools,
    position: F32,
    truth: Truth,
    metric: str,
    form: Form,
    starts: tuple[Served, ...] = (),
) -> Served:
    """The parameters under which the mixed gallery retrieves best by the mean of `metric`: a pattern search.

    Args:
        stale, new: (Q, N) scores with the items' stale and new vectors; -inf excludes an item from a query.
        is_new: (N,) which items are new.
        position: (N,) place in the order, 0 to 1.
        form: which parameters may move.
        starts: further points to start from, such as the fit at a fraction nearby.

    Returns:
        The identity where nothing or everything is stale and the form has no slope: no ranking changes then.
    """
    if form == "identity" or is_new.all() or (not is_new.any() and not form.endswith("by_wave")):
        return Served()
    finite = np.isfinite(stale) & np.isfinite(new)
    relevant = stale[np.repeat(np.arange(len(stale)), truth.counts), truth.items]
    relevant = relevant[np.isfinite(relevant)]
    if not finite.any() or len(relevant) == 0:
        return Served()
    gap = float(np.median(np.abs(new[finite] - stale[finite]))) or 1.0
    # A score changes its spread about the mean of the relevant ones: where rankings are decided, scale and offset then
    # move apart. About the mean of all, no single step betters both.
    center = float(relevant.mean())

    def value(at: Served) -> float:
        ranks = ranks_of(mixed(stale, new, is_new, position, at), {"": truth})[""]
        return float(np.nanmean(metrics_of(truth, ranks)[metric])) if len(ranks) else 0.0

    seen: dict[Served, float] = {}

    def score(at: Served) -> float:
        if at not in seen:
            seen[at] = value(at)
        return seen[at]

    def restrict(at: Served) -> Served:
        """A start of a richer form, as near as this form comes to it."""
        scale = at.scale if form.startswith("scale") else 1.0
        return Served(scale, at.offset if scale == at.scale else 0.0, at.slope if form.endswith("by_wave") else 0.0)

    best = max((restrict(start) for start in (Served(), *starts)), key=score)
    # The offset first, then all: coarse steps of the scale would lead away from where the offset alone would end.
    parts: tuple[Form, ...] = ("offset",) if form == "offset" else ("offset", form)
    for part, halving in itertools.product(parts, range(_HALVINGS + 1)):
        step, factor = gap * _STEP / 2**halving, _FACTOR ** (1 / 2**halving)
        moved = True
        while moved:
            moved = False
            for near in _near(best, part, step, factor, center):
                if score(near) > score(best) + _LEAST_GAIN:
                    best, moved = near, True
                    break
    return best


def _near(at: Served, form: Form, step: float, factor: float, center: float) -> list[Served]:
    found = [Served(at.scale, at.offset + sign * step, at.slope) for sign in (1, -1)]
    if form.startswith("scale"):
        for scale in (at.scale * factor, at.scale / factor):
            found.append(Served(scale, at.offset + (at.scale - scale) * center, at.slope))
    if form.endswith("by_wave"):
        # The slope turns about the middle of the order.
        found += [Served(at.scale, at.offset - sign * step / 2, at.slope + sign * step) for sign in (1, -1)]
    return found


def interpolate(fractions: list[float], fitted: list[Served], at: float) -> Served:
    """The parameters between the fractions at which they were fitted; the identity where nothing was."""
    if not fitted:
        return Served()
    if at <= fractions[0]:
        return fitted[0]
    for (low, first), (high, second) in itertools.pairwise(zip(fractions, fitted, strict=True)):
        if at <= high:
            return first.between(second, (at - low) / (high - low))
    return fitted[-1]


class Calibration(Model):
    """Served score = scale * score + offset."""

    scale: float = Field(default=1.0, gt=0)
    offset: float = 0.0
