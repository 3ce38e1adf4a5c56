"""How figures, shares and names are written for people, the same in text, HTML and charts."""

from __future__ import annotations

from fastfill_ray.types import Relevance, Scope

MISSING = "-"
METRIC_NAMES = {"map": "mAP", "mrr": "MRR", "cmc@1": "CMC@1", "cmc@5": "CMC@5", "ndcg@10": "nDCG@10"}
RELEVANCE_WORDS: dict[Relevance, str] = {
    "label": "an item is right when it has the query's label",
    "qrels": "an item is right when it was judged right for the query",
    "log": "an item is right when the user took it",
    "new_model": "an item is right when the full new model would return it",
}
SCOPE_WORDS: dict[Scope, str] = {
    "gallery": "measured on the published index with the given queries",
    "audit": "measured on the audit items, a sample that stands for the gallery",
}
SCOPE_PLACES: dict[Scope, str] = {"gallery": "in the published index", "audit": "on the audit items"}


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def score(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def score_interval(value: float, low: float, high: float) -> str:
    return f"{score(value)} ({score(low)} to {score(high)})"


def change(value: float) -> str:
    """A difference of two scores, with its sign."""
    return f"{value:+.3f}"


def change_interval(value: float, low: float | None, high: float | None) -> str:
    return change(value) if low is None or high is None else f"{change(value)} ({change(low)} to {change(high)})"
