"""The report as one self-contained HTML page: no script, no request, light and dark, printable.

Every value from the log passes through ``html.escape`` on its way into the page; the content security policy in the
head lets a browser load nothing even if one were missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from fastfill_ray.log.records import Plan
from fastfill_ray.log.state import State
from fastfill_ray.report.chart import svg
from fastfill_ray.report.choice import HEADINGS as TRIAL_HEADINGS
from fastfill_ray.report.choice import choice_words, trial_rows
from fastfill_ray.report.flips import AGAINST, flips_of, group_metrics
from fastfill_ray.report.model import (
    HEADINGS,
    METRIC_COLUMNS,
    MeasuredCurve,
    column_note,
    measured_curves,
    objective_curve,
    status,
    table_rows,
)
from fastfill_ray.report.prediction import SCOPES, drawn_prediction, prediction_error, promises
from fastfill_ray.report.wording import MISSING, RELEVANCE_WORDS, SCOPE_WORDS, metric_name, percent, score

# Okabe and Ito's colour-blind safe hues, darkened (light) or lightened (dark) until text in them passes 4.5:1.
_CSS = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1c1e21; --soft: #5c6269; --rule: #d9dce0; --panel: #f6f7f8;
  --curve: #0064a3; --plain: #a34700; --guess: #8f3a75; --new: #00704f; --old: #5c6269; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171a; --fg: #e7e9ec; --soft: #a3a9b1; --rule: #363a40;
  --panel: #1d2024; --curve: #5cb8f0; --plain: #f0995c; --guess: #d992bd; --new: #46c79c; --old: #a3a9b1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.25rem 4rem; background: var(--bg); color: var(--fg);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .1rem; }
p { margin: .3rem 0 .7rem; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; margin: 0 0 .3rem; max-width: none; }
figure { margin: 0; break-inside: avoid; }
.wide { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
th:first-child, td:first-child, .text { text-align: left; }
tr.arm td { background: var(--panel); color: var(--soft); }
tr.held td.text { color: var(--plain); }
svg { display: block; width: 100%; min-width: 25rem; max-width: 46rem; height: auto; }
.grid-2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)); gap: 0 1.5rem; }
.grid-2 figure { min-width: 0; }
svg text { font: 12px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--bg); stroke-width: 3px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.band { fill: var(--curve); opacity: .16; }
.whisker { stroke: var(--curve); stroke-width: 1.5; }
.band-guess { fill: var(--guess); opacity: .14; }
.whisker-guess { stroke: var(--guess); stroke-width: 1.5; }
.line { fill: none; stroke: var(--curve); stroke-width: 2.25; }
.line-plain { fill: none; stroke: var(--plain); stroke-width: 1.25; stroke-dasharray: 5 4; }
.line-guess { fill: none; stroke: var(--guess); stroke-width: 1.75; stroke-dasharray: 8 4; }
.arm-old { stroke: var(--old); stroke-width: 1.25; stroke-dasharray: 1.5 3; }
.arm-new { stroke: var(--new); stroke-width: 1.25; stroke-dasharray: 9 4; }
.dot { fill: var(--curve); stroke: var(--curve); stroke-width: 2; }
.dot-held { fill: var(--bg); stroke: var(--curve); stroke-width: 2; }
svg .t-curve { fill: var(--curve); font-weight: 600; }
svg .t-plain { fill: var(--plain); }
svg .t-guess { fill: var(--guess); }
svg .t-old { fill: var(--old); }
svg .t-new { fill: var(--new); }
.leader { fill: none; stroke: var(--rule); stroke-width: 1; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { :root { --bg: #ffffff; --fg: #000000; --soft: #444a50; --rule: #c4c8cc; --panel: #f3f4f5;
  --curve: #0064a3; --plain: #a34700; --guess: #8f3a75; --new: #00704f; --old: #444a50; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } .wide { overflow: visible; } svg { min-width: 0; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; } body { print-color-adjust: exact; } }
"""


def report_html(state: State) -> str:
    """The whole page. Any state gives one, from an empty log to a finished run."""
    plan = state.plan
    if plan is None:
        return _page(["<p class=lead>There is no plan yet, so there is nothing to show. Run the backfill first.</p>"])
    parts = [f"<p class=lead>{_standing(state, plan)}</p>", "<h2>Quality while the gallery is re-embedded</h2>"]
    measured = measured_curves(state)
    if measured:
        # The objective comes first, and large; the others are small multiples below it.
        first, *others = [_figure(state, c, c.name == plan.objective) for c in measured]
        parts += [first, f"<div class=grid-2>{''.join(others)}</div>"]
    else:
        parts.append("<p>No version has been measured yet.</p>")
    parts += ["<h2>Versions</h2>", _versions(state), _not_as_planned(state), _flips(state), _groups(state, plan)]
    parts.append(_predicted(state))
    if measured:
        parts += ["<h2>Area under the curves</h2>", _areas(measured)]
    parts += [_choice(plan), "<h2>Settings</h2>", _settings(state, plan), "<h2>How to read this</h2>", _HOW_TO_READ]
    return _page(parts)


def _page(parts: Iterable[str]) -> str:
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">\n"""
        f"<title>Backfill report</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<h1>Backfill report</h1>\n"
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def _standing(state: State, plan: Plan) -> str:
    """Where the run stands, in a few sentences."""
    versions = state.plan_versions
    if not versions:
        return f"The plan for {plan.rows:,} items is made; no version has been built yet."
    last = versions[-1]
    sentences = [
        f"{percent(last.fraction)} of {plan.rows:,} items are re-embedded"
        + (", and the run has ended." if state.ended else "; the run has not ended yet.")
    ]
    if state.stopped is not None:
        sentences.append(f"It was stopped by rule: {escape(state.stopped)}.")
    serving = "no version" if state.serving is None else f"version {state.serving}"
    sentences.append(f"Readers open <strong>{serving}</strong>.")
    best = objective_curve(state)
    if best is not None and best.gain_share is not None:
        name = escape(metric_name(best.metric))
        sentences.append(
            f"Version {best.points[-1].version} has {name} {score(best.points[-1].value)}: "
            f"<strong>{percent(best.gain_share)}</strong> of the way from the old system to the full new one."
        )
    return " ".join(sentences)


def _figure(state: State, c: MeasuredCurve, is_objective: bool) -> str:
    words = f"{RELEVANCE_WORDS[c.relevance]}; {SCOPE_WORDS[c.scope]}."
    mark = " &middot; the objective" if is_objective else ""
    predicted = drawn_prediction(state, c.relevance, c.metric, c.scope)
    return (
        f"<figure><h3>{escape(metric_name(c.metric))} by {escape(c.relevance)}{mark}</h3>"
        f"<figcaption>{words[0].upper()}{words[1:]}</figcaption><div class=wide>{svg(c, predicted)}</div></figure>"
    )


def _table(headings: Iterable[str], rows: Iterable[tuple[str, tuple[str, ...]]], text: str = "") -> str:
    """Rows are (css class, cells); the column named `text` is prose, the others are numbers."""
    names = tuple(headings)

    def cell(tag: str, name: str, value: str) -> str:
        return f"<{tag} class=text>{escape(value)}</{tag}>" if name == text else f"<{tag}>{escape(value)}</{tag}>"

    body = "".join(
        f'<tr class="{escape(css)}">' + "".join(cell("td", n, v) for n, v in zip(names, cells, strict=True)) + "</tr>\n"
        for css, cells in rows
    )
    head = "".join(cell("th", n, n) for n in names)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"


def _versions(state: State) -> str:
    versions = {str(v.version): v for v in state.plan_versions}
    rows = []
    for cells in table_rows(state):
        version = versions.get(cells[0])
        if version is None:
            counts, css = (MISSING, MISSING), "arm"
        else:
            counts, css = (f"{version.quarantined:,}", f"{version.absent:,}"), status(state, version)
        # The gate's reason stands in full below the table.
        published = "held" if css == "held" else cells[-1]
        rows.append((css, (*cells[:-1], *counts, published)))
    headings = (*HEADINGS[:-1], "quarantined", "absent", HEADINGS[-1])
    return f"<p class=soft>{escape(column_note(state))}</p>" + _table(headings, rows, text=HEADINGS[-1])


def _not_as_planned(state: State) -> str:
    """Held versions with the gate's full reasons, and the rows that are not where they should be."""
    versions = state.plan_versions
    items = [
        f"<li>Version {v.version} is held: {escape(v.verdict.reason)}</li>"
        for v in versions
        if status(state, v) == "held"
    ]
    if versions and versions[-1].quarantined:
        items.append(
            f"<li>{versions[-1].quarantined:,} items are quarantined: embedding them failed, so they stay stale. "
            "The receipts name each with its reason.</li>"
        )
    if versions and versions[-1].absent:
        items.append(
            f"<li>{versions[-1].absent:,} items are absent: their old vector cannot be used, so that they cannot be "
            "found before they are re-embedded.</li>"
        )
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _flips(state: State) -> str:
    """Per version the shares of queries that got worse and better, against the old system and the version before."""
    found = {v.version: flips_of(state, v) for v in state.plan_versions}
    first = next((f for flips in found.values() for f in flips.values()), None)
    if first is None:
        return ""
    headings = ["version"]
    for against in AGAINST:
        headings += [f"NFR, {against}", f"PFR, {against}", f"mean loss, {against}", f"mean gain, {against}"]
    rows = []
    for number, flips in found.items():
        cells = [str(number)]
        for against in AGAINST:
            f = flips.get(against)
            cells += (
                [MISSING] * 4
                if f is None
                else [_share(f.nfr, f.nfr_low, f.nfr_high), _share(f.pfr, f.pfr_low, f.pfr_high)]
            )
            cells += [] if f is None else [score(f.mean_loss), score(f.mean_gain)]
        rows.append(("", tuple(cells)))
    return (
        "<h3>Queries that got worse and better</h3>"
        f"<p>By {escape(metric_name(first.metric))} and relevance {escape(first.relevance)}, "
        f"{SCOPE_WORDS[first.scope]}: "
        "the share of the queries that are worse off (NFR) and better off (PFR) than with the old system and than with "
        "the version before, with its 95 % interval, and by how much those are on average.</p>" + _table(headings, rows)
    )


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _groups(state: State, plan: Plan) -> str:
    """The objective per group of the queries and version, and the gap between the groups."""
    versions, best = state.plan_versions, objective_curve(state)
    if best is None:
        return ""
    place = (best.scope, best.relevance, best.metric)
    columns = {v.version: group_metrics(v.metrics).get(place, {}) for v in versions}
    arms = {arm: group_metrics(plan.baselines.get(arm, ())).get(place, {}) for arm in ("old/old", "new/new")}
    names = dict.fromkeys(name for groups in columns.values() for name in groups)
    if not names:
        return ""
    known = {
        "old/old": arms["old/old"],
        **{str(v): groups for v, groups in columns.items()},
        "new/new": arms["new/new"],
    }
    known = {heading: groups for heading, groups in known.items() if groups}
    rows = []
    for name in names:
        queries = max(groups[name].queries for groups in known.values() if name in groups)
        values = (groups[name].value if name in groups else None for groups in known.values())
        rows.append(("", (name, f"{queries:,}", *(score(value) for value in values))))
    gaps = ({m.value for m in groups.values()} for groups in known.values())
    rows.append(("arm", ("gap", MISSING, *(score(max(gap) - min(gap)) for gap in gaps))))
    return (
        "<h3>Per group</h3>"
        f"<p>{escape(metric_name(best.metric))} by {escape(best.relevance)} over the queries of each group, by "
        "version; the gap is the best group's value minus the worst one's.</p>"
        + _table(("group", "queries", *known), rows, text="group")
    )


def _areas(measured: tuple[MeasuredCurve, ...]) -> str:
    headings = ("metric", "scope", "calibrated", "uncalibrated", "old/old", "new/new")
    rows = [
        (
            "",
            (
                f"{metric_name(c.metric)} by {c.relevance}",
                c.scope,
                score(c.area),
                score(c.area_uncalibrated),
                score(c.old.value if c.old else None),
                score(c.new.value if c.new else None),
            ),
        )
        for c in measured
    ]
    return (
        "<p>The mean height of each curve over the fractions from the first version to the last (trapezoid), beside "
        "the two arms. Higher is better: it is the quality users get on average while the backfill runs.</p>"
        + _table(headings, rows)
    )


def _predicted(state: State) -> str:
    """Per version what was promised and what came, as values and as shares of the gain."""
    found = promises(state)
    if not found:
        return ""
    headings = ["version", "fraction", "predicted", "audit", "gallery", "share predicted", "audit", "gallery"]
    rows = []
    for p in found:
        values = [p.prediction, *(p.measured.get(scope) for scope in SCOPES)]
        shares = [p.share, *(p.shares.get(scope) for scope in SCOPES)]
        cells = [MISSING if p.version is None else str(p.version), percent(p.prediction.fraction)]
        cells += [MISSING if v is None else f"{score(v.value)} ({score(v.low)} to {score(v.high)})" for v in values]
        rows.append(("", (*cells, *(MISSING if share is None else percent(share) for share in shares))))
    errors = {scope: error for scope, error in prediction_error(state).items() if error is not None}
    told = ", ".join(f"{percent(error)} on {scope}" for scope, error in errors.items())
    of = found[0].prediction
    return (
        "<h2>Predicted and measured</h2>"
        f"<p>{escape(metric_name(of.metric))} by {escape(of.relevance)}, predicted on the audit items before the first "
        "wave, with 95 % intervals. A share is one of the gain from old/old to new/new, on gallery to the last version "
        "once everything is re-embedded; where old/old is not known, from version 0."
        + (f" Mean absolute error of the share: <strong>{told}</strong>." if told else "")
        + "</p>"
        + _table(headings, rows)
    )


def _choice(plan: Plan) -> str:
    """What `auto` became and why, and the best of what was tried last."""
    words, rows = choice_words(plan), trial_rows(plan)
    if not words:
        return ""
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in words.items())
    trials = (
        "<h3>Best candidates of the last stage</h3><p>The area is the mean of the objective along a whole backfill of "
        "the calibration pairs, with calibrations fitted on the same pairs: it compares, it does not promise.</p>"
        + _table(TRIAL_HEADINGS, [("", row) for row in rows], text=TRIAL_HEADINGS[-1])
    )
    return f"<h2>Choice</h2><dl>{listed}</dl>" + (trials if rows else "")


def _settings(state: State, plan: Plan) -> str:
    relevance, _, metric = plan.objective.partition("/")
    stale = plan.stale_factory if plan.stale_factory != plan.factory else "the same"
    fused = f": {plan.fusion.old**2:.3g} x old + {plan.fusion.new**2:.3g} x aligned score" if plan.fusion else ""
    entries = {
        "objective": f"{metric_name(metric)} by {relevance}",
        "alignment": plan.method,
        "policy": plan.policy,
        "stale mode": plan.stale_mode + fused,
        "waves": ", ".join(percent(w) for w in plan.waves) + " of the items",
        "pairs": f"{plan.wave_rows[0]:,} items, wave 0" if plan.wave_rows else MISSING,
        "index": f"{plan.factory}; for stale items {stale}; up to {plan.segment_rows:,} rows a segment",
    }
    if state.init is not None:
        entries["spaces"] = (
            f"old {state.init.old_dim} dimensions, new {state.init.new_dim} dimensions, metric {state.init.metric}"
        )
    entries["plan"] = plan.plan
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
    return f"<dl>{listed}</dl>"


_HOW_TO_READ = f"""<p>Each point is one complete version of the index: to its left the share of the gallery that the new
model has embedded, the rest searched through the alignment from the old vectors. <em>old/old</em> is what users had
before, <em>new/new</em> what they get when everything is re-embedded. A curve that rises steeply at the left means that
the items that matter most came first. The shaded band is the bootstrap 95 % interval; differences inside it may be
chance. Filled points were published; hollow ones were not, because the gate found them worse than what users have, or
because the run stopped before it. The solid line is what is served, with the scores of stale and new items calibrated
to each other; the thin dashed one is the same index without that. The long dashes with a band of their own are what was
predicted on the audit items before the first wave; in a chart of the published index they are the predicted shares of
the gain, from old/old to the last version. The columns {", ".join(METRIC_COLUMNS)} are means
over the queries, between 0 and 1.</p>"""
