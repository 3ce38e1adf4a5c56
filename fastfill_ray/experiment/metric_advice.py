"""Whether the new model retrieves better under another metric than the given one.

Legend: Q queries, N items.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.items import LEAST_ASKING, PairedItems, Queries
from fastfill_ray.experiment.shadow import Unseen, make_shadow, scores_of
from fastfill_ray.retrieval.intervals import Interval, paired_difference
from fastfill_ray.types import F64, Metric


class BetterMetric(NamedTuple):
    """A metric under which new/new is better than under the given one, and by how much, paired over the queries."""

    metric: Metric
    gain: Interval


def advise_metric(
    items: PairedItems, queries: Queries, metric: Metric, objective: Objective, *, seed: int
) -> BetterMetric | None:
    """The best of the other metrics whose paired 95 % interval over the given one lies above 0; None without one.

    Only new vectors are looked at, as they are, by the objective's own relevance. `new_model` follows from the metric
    itself, so it can prefer none; neither can queries of which fewer than LEAST_ASKING have an answer.

    Args:
        items: the audit items. queries: those that are to be measured.
    """
    if objective.relevance == "new_model":
        return None
    shadow = make_shadow(items, queries, metric)
    if shadow.answered(objective.relevance).sum() < LEAST_ASKING:
        return None
    by_objective, unseen = shadow.only([objective.relevance]), Unseen.of(items, queries)

    def values(of_metric: Metric) -> F64:
        scores = shadow.new if of_metric == metric else scores_of(queries.new, items.new, of_metric, unseen)
        return by_objective.measure(scores)[objective.relevance, objective.metric]

    given = values(metric)
    others: list[Metric] = [other for other in get_args(Metric) if other != metric]
    gains = [BetterMetric(other, paired_difference(values(other), given, seed=seed)) for other in others]
    return max((better for better in gains if better.gain.low > 0), key=lambda better: better.gain.value, default=None)
