"""A backfill beside cheaper ways, in the terminal: a table, and in words whether it is worth it.

Everything follows from what simulation.json holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastfill_ray.experiment.items import LEAST_ASKING, MIN_QUERIES
from fastfill_ray.experiment.rivals import QUERY_MAP, SHOWN, SWAP_AT_END
from fastfill_ray.experiment.summary import CHOICE
from fastfill_ray.report.text import Column, table_lines, wrapped
from fastfill_ray.report.wording import MISSING, metric_name

Values = Mapping[str, Any]


def rival_lines(data: Mapping[str, Any]) -> list[str]:
    """The choice and its rivals by the objective at seven shares of new items, then the words; figures in percent.

    Args:
        data: what simulation.json holds.
    """
    rivals = data["rivals"]
    ways = _ways(rivals)
    points = [f"{100 * place / 21:.0f} %" for place in SHOWN]
    curves = [[f"{100 * values['curve'][place]:.1f}" for place in SHOWN] for values in ways.values()]
    columns = [
        Column("way", tuple(ways), is_left=True),
        *(Column(share, tuple(cells)) for share, cells in zip(points, zip(*curves, strict=True), strict=True)),
        Column("area", tuple(f"{100 * values['area']:.1f}" for values in ways.values())),
        Column("area of the choice above it", tuple(_interval(values["behind"]) for values in ways.values())),
    ]
    title = f"Beside cheaper ways, by {rivals['objective']} (%), the more items are new:"
    return ["", title, *table_lines(columns), *(wrapped(words) for words in rivals["words"])]


def metric_lines(data: Mapping[str, Any]) -> list[str]:
    """That another metric suits the new model better; none where it does not."""
    better = data["better_metric"]
    if better is None:
        return []
    words = (
        f"The new model retrieves better by {better['metric']} than by {data['metric']}, which was given: "
        f"{_interval(better['gain'])} points of {_named(data['rivals']['objective'])}, all items new. Set metric "
        f"{better['metric']} if nothing speaks against it."
    )
    return [wrapped(words)]


def few_answers(asked_for: str, answers: Mapping[str, Mapping[str, int]], given: int | None) -> str:
    """That the queries are too few, or that too few of them have an answer by the objective asked for, and what was
    done; "" for none.

    Args:
        answers: {split: how many `queries` ask it, and how many of them are `answered`}. given: queries of the user's;
            None where none are.
    """
    if given is not None and given < LEAST_ASKING:
        return (
            f"Only {given} {'query is' if given == 1 else 'queries are'} given, and at least {LEAST_ASKING} are "
            "needed: the items of each split ask instead."
        )
    few = {split: counts for split, counts in answers.items() if counts["answered"] < MIN_QUERIES}
    if not few or asked_for.startswith("new_model/"):
        return ""
    places = " and ".join(
        f"{counts['answered']:,} of {counts['queries']:,} queries have an answer among the {split} items"
        for split, counts in few.items()
    )
    done = {"calibration": "chosen", "audit": "reported"}
    return (
        f"By {asked_for}, which was asked for, only {places}; at least {MIN_QUERIES} are needed. So it is "
        f"{' and '.join(done[split] for split in few)} by new_model instead."
    )


def worth_words(rivals: Mapping[str, Any], few: str = "") -> list[str]:
    """Whether a backfill is worth it at all, what costs no embedding would give, and what the best rival gives.

    Args:
        rivals: of ``summary.rivals_json``. few: of ``few_answers``.
    """
    ways = _ways(rivals)
    if CHOICE not in ways:
        return []
    words = [*([few] if few else []), _new_model(rivals, few), _without_embedding(ways)]
    others = {name: values for name, values in ways.items() if name != CHOICE}
    if others:
        name, best = max(others.items(), key=lambda way: way[1]["area"])
        behind, area = best["behind"], ways[CHOICE]["area"]
        ahead = "The choice is ahead" if behind["low"] > 0 else "The choice is not measurably ahead"
        if behind["high"] < 0:
            ahead = "The choice is behind"
        words.append(
            f"On the way, mean over the backfill, the choice gives {100 * area:.1f} and the best other way, {name}, "
            f"{100 * best['area']:.1f}. {ahead}: {_interval(behind)}."
        )
    return words


def _new_model(rivals: Mapping[str, Any], few: str) -> str:
    """Whether the new model is better than the old one."""
    objective = rivals["objective"]
    if objective.startswith("new_model/"):
        tells = "More answers among the items would tell: give more pairs, or more queries with answers."
        return (
            "Whether the new model is better than the old one is not measured: relevance new_model takes its answers "
            f"as right. {tells if few else 'Labels, judgements or a log of what users took would tell.'}"
        )
    gain = rivals["gain"].get(objective)
    if gain is None:
        return (
            "Whether the new model is better than the old one is not measured: the queries have no old vectors. Give "
            "them in the column 'old'."
        )
    by = f"{_interval(gain)} points of {_named(objective)}"
    if gain["high"] < 0:
        return f"The new model is worse than the old one: {by}. A backfill is not worth it."
    if gain["low"] <= 0:
        return f"The new model is not measurably better than the old one: {by}. A backfill is not worth its price."
    return f"The new model is better than the old one: {by}. That is what a whole backfill brings."


def _without_embedding(ways: Mapping[str, Values]) -> str:
    """What can be had at once, with no item embedded anew."""
    chosen, mapped = ways[CHOICE], ways.get(QUERY_MAP)
    old = ways[SWAP_AT_END]["curve"][0] if SWAP_AT_END in ways else None
    new = chosen["curve"][-1]
    at_once = [chosen] if mapped is None else [chosen, mapped]
    words = f"With nothing embedded anew, the choice gives {100 * chosen['curve'][0]:.1f}"
    if mapped is not None:
        words += f" and the old index, asked with mapped queries, {100 * mapped['curve'][0]:.1f}"
    words += f"; new/new is {100 * new:.1f}" + ("." if old is None else f", old/old {100 * old:.1f}.")
    best = max(at_once, key=lambda way: way["curve"][0])
    if best["below_new"]["low"] <= 0:
        way = "the choice at 0 %" if best is chosen else "mapped queries"
        return f"{words} The new model itself is not measurably above {way}: serve that, and embed only what is new."
    if old is not None and best["curve"][0] < old:
        words += " That is below the old system." if mapped is None else " Both are below the old system."
    return words


def _ways(rivals: Mapping[str, Any]) -> dict[str, Values]:
    """{way: its figures by the objective}."""
    objective = rivals["objective"]
    return {way["name"]: way["values"][objective] for way in rivals["ways"] if objective in way["values"]}


def _named(objective: str) -> str:
    relevance, _, metric = objective.partition("/")
    return f"{metric_name(metric)} by {relevance}"


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return MISSING
    return f"{100 * value['value']:+.1f} ({100 * value['low']:+.1f}..{100 * value['high']:+.1f})"
