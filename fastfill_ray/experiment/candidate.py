"""A candidate: one way to run a backfill, and what may be chosen.

Legend: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fastfill_ray.errors import ConfigError
from fastfill_ray.ordering.policies import CLASSIFIED, LABELLED, LOGGED, POLICIES, Policy
from fastfill_ray.retrieval.calibration import FORMS, Form
from fastfill_ray.types import Metric, Relevance, StaleMode

# Shares of the aligned score that are tried where old query vectors exist; 0 is the old score alone.
WEIGHTS = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0)


@dataclass(frozen=True)
class Objective:
    """One relevance and one metric: what every choice looks at."""

    relevance: Relevance
    metric: str

    def __str__(self) -> str:
        return f"{self.relevance}/{self.metric}"


# Metrics that look at the first relevant item alone.
_OF_THE_FIRST = ("cmc@1", "cmc@5", "recall@1", "mrr")


def stand_in(objective: Objective) -> Objective:
    """What decides where the objective's relevance has too few answers: what the new model alone returns.

    Of its ten each is as right as the first, so where the first of them stands says nothing, and a calibration that is
    fitted to that pushes stale items out. Then it is how many of them are found.
    """
    return Objective("new_model", "recall@10" if objective.metric in _OF_THE_FIRST else objective.metric)


class MapView(NamedTuple):
    """A map, and what becomes of its aligned vectors' norms: brought to the norm of new vectors, or kept.

    Under l2 and inner product norms may say something. Measured on digits (l2): overlap@10 of the curve 88.6 kept, 86.3
    matched.
    """

    method: str
    norms_kept: bool = False

    def __str__(self) -> str:
        return f"{self.method}, norms kept" if self.norms_kept else self.method


def views_of(method: str, metric: Metric) -> tuple[MapView, ...]:
    """The views of a map: under cosine norms do not count, so there is one."""
    return (MapView(method),) if metric == "cosine" else (MapView(method), MapView(method, norms_kept=True))


@dataclass(frozen=True)
class Candidate:
    """One way to run a backfill. weight: the aligned score's share of a stale score; below 1 it is `fused`."""

    view: MapView
    weight: float
    policy: Policy
    form: Form

    @property
    def stale_mode(self) -> StaleMode:
        return "aligned" if self.weight == 1 else "fused"

    def same_but_form(self, other: Candidate) -> bool:
        """Whether the two differ in the form of calibration at most."""
        return replace(self, form=other.form) == other

    def __str__(self) -> str:
        mode = "aligned" if self.weight == 1 else f"fused {self.weight:g}"
        return f"{self.view}, {mode}, {self.policy}, {self.form}"


@dataclass(frozen=True)
class Allowed:
    """What may be chosen. Each list begins with what is simplest, and what is simpler wins within the noise.

    views: maps in the order of what they cost to apply.
    """

    views: Sequence[MapView]
    policies: Sequence[Policy]
    weights: Sequence[float] = WEIGHTS
    forms: Sequence[Form] = FORMS

    def forms_of(self, policy: Policy) -> list[Form]:
        """The forms that suit an order.

        By a log, what is asked for most is in the first waves. An offset by wave would rank it higher while it is
        stale, and no longer once it is new: a prior of the log, and no calibration.
        """
        return [form for form in self.forms if policy not in LOGGED or not form.endswith("by_wave")]


def policies_allowed(
    wanted: Sequence[Policy] | None,
    relevance: Relevance,
    *,
    labelled: bool,
    classified: bool,
    lists: bool = False,
    logged: bool = False,
    taken: bool = False,
    prioritised: bool = False,
) -> list[Policy]:
    """The orders to compare: those that are asked for, else all that the data allows and that suit the relevance, the
    one first that is chosen within the noise.

    Args:
        labelled: whether each item has one label. classified: whether there is a classifier, given or fitted.
        lists: whether labels are lists, so that an item has no one class. logged: whether there is a query log.
        taken: whether it names what was taken. prioritised: whether items have a priority of the user's own; such an
        order is one that was asked for.

    Raises:
        ConfigError: an order that is asked for reads what is not there.
    """
    lacking: dict[Policy, str] = {}
    if not classified:
        why = "it needs the new model's classifier, or pairs with labels of several items each to fit one on"
        lacking |= dict.fromkeys(CLASSIFIED, f"{why}; set new_model.classifier, raise pairs.count, or choose another")
    if not labelled:
        lacking |= dict.fromkeys(LABELLED, "it reads the items' labels; name their column, or choose another")
    if lists:
        why = "it needs one class per item, but the labels here are lists; name a column of single labels, or choose"
        lacking = dict.fromkeys(lacking, f"{why} another")
    if not logged:
        lacking |= dict.fromkeys(LOGGED, "it needs a query log; set queries.log_path, or choose another")
    elif not taken:
        lacking["taken"] = "the query log names no items that were taken; add a column item_id, or choose another"
    if not prioritised:
        lacking["column"] = "it needs a priority per item; name the column, or choose another"
    for policy in wanted or ():
        if policy in lacking:
            raise ConfigError(f"policy {policy}: {lacking[policy]}")
    if wanted:
        return list(wanted)
    # An order that reads gallery labels keeps stale what scores well by label: it suits that relevance and no other.
    unsuited: frozenset[Policy] = (frozenset() if relevance == "label" else LABELLED) | {"column"}
    allowed = [policy for policy in POLICIES if policy not in lacking and policy not in unsuited]
    # Within the noise the first one is chosen: by what users took, where what they take is the objective.
    first: tuple[Policy, ...] = ("taken", "demand") if relevance == "log" else ()
    return sorted(allowed, key=lambda policy: first.index(policy) if policy in first else len(first))
