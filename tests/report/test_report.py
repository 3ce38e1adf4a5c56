"""The report says what the log says, in text, JSON and HTML, whatever state the run is in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.log.records import FileRef, FlipValue, Init, MetricValue, Plan, Segment, Verdict, Version
from fastfill_ray.log.state import State
from fastfill_ray.report.chart import HEIGHT, WIDTH, spread, ticks
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.model import HEADINGS, Point, area_under, measured_curve
from fastfill_ray.report.text import version_table

VOID = {"meta", "br", "hr", "img", "link", "input"}
FRACTIONS = (0.05, 0.125, 0.25, 0.5, 1.0)
ITEMS = 6012


class Page(HTMLParser):
    """The parts of a page that the tests ask about; refuses unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.style = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
            return
        self.text.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(r for r in self.rows if r and r[0] == first)

    def count(self, tag: str, css: str) -> int:
        return sum(1 for t, attrs in self.tags if t == tag and attrs.get("class") == css)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def metric(relevance: str, name: str, value: float, *, scope: str = "gallery", calibrated: bool = True) -> MetricValue:
    return MetricValue.model_validate(
        {
            "scope": scope,
            "relevance": relevance,
            "metric": name,
            "calibrated": calibrated,
            "value": value,
            "low": value - 0.02,
            "high": value + 0.02,
            "queries": 1000,
            "depth": 10,
        }
    )


def arm(start: float) -> tuple[MetricValue, ...]:
    names = (("label", "cmc@1"), ("label", "map"), ("qrels", "recall@1"), ("qrels", "recall@10"))
    return tuple(metric(r, m, start + 0.03 * i) for i, (r, m) in enumerate(names))


def flip(against: str, nfr: float, pfr: float, *, name: str = "map", scope: str = "gallery") -> FlipValue:
    return FlipValue.model_validate(
        {
            "scope": scope,
            "relevance": "label",
            "metric": name,
            "against": against,
            "nfr": nfr,
            "nfr_low": nfr - 0.01,
            "nfr_high": nfr + 0.01,
            "pfr": pfr,
            "pfr_low": pfr - 0.02,
            "pfr_high": pfr + 0.02,
            "mean_gain": 0.25,
            "mean_loss": 0.125,
            "queries": 1000,
        }
    )


def version(number: int, fraction: float, *, held: str = "", metrics: Sequence[MetricValue] | None = None) -> Version:
    gain = 0.4 + 0.2 * fraction**0.4
    if metrics is None:
        metrics = (
            *arm(gain),
            metric("label", "map", gain + 0.03 - 0.05 * (1 - fraction), calibrated=False),
            metric("new_model", "recall@10", 0.5 + fraction / 2, scope="audit"),
        )
    blob = FileRef(path=f"index/v{number}", size=1000, sha256="0" * 64)
    segment = Segment(
        bucket=0, wave=0, state="new", space="new", dim=384, rows=ITEMS, ids_digest="", index=blob, ids=blob
    )
    return Version(
        version=number,
        plan="ab12",
        wave=number,
        segments=(segment,),
        rows=ITEMS,
        new_rows=round(fraction * ITEMS),
        quarantined=3 if number else 0,
        absent=0,
        fraction=fraction,
        ids_digest="",
        metrics=tuple(metrics),
        query_metrics=None,
        verdict=Verdict(
            publish=not held, reason=held or "no worse than the version before", difference=-0.03 if held else None
        ),
        seconds=12.5 + number,
        final=fraction == 1.0,
    )


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "plan": "ab12",
        "request": "r",
        "settings": {},
        "ids_digest": "0",
        "snapshot": "s",
        "pairs": "p",
        "alignment": "a",
        "scores": "c",
        "method": "fastfill",
        "policy": "uncertainty",
        "stale_mode": "aligned",
        "waves": FRACTIONS,
        "thresholds": (5, 4, 3, 2, 0),
        "wave_rows": (301, 451, 751, 1503, 3006),
        "rows": ITEMS,
        "unusable_rows": 0,
        "factory": "Flat",
        "stale_factory": "Flat",
        "segment_rows": 1_000_000,
        "units": {"path": "scores/units", "size": 1, "sha256": "0"},
        "templates": {},
        "objective": "label/map",
        "baselines": {"old/old": arm(0.35), "new/new": arm(0.6)},
        "baseline_queries": None,
        "choices": {"alignment": "fastfill: mAP 0.512 at 0 % against 0.498 for ridge"},
    }
    return Plan.model_validate({**fields, **changes})


INIT = Init(id_type="string", metric="cosine", old_dim=64, new_dim=384, old_space="o", new_space="n")


def finished() -> State:
    """Five versions, the second one held, the last one served."""
    held = "its mAP is lower than version 0's by 0.030 (0.010 to 0.050)"
    versions = tuple(version(i, f, held=held if i == 1 else "") for i, f in enumerate(FRACTIONS))
    return State(next_seq=13, init=INIT, epoch=1, plans=(plan(),), versions=versions, published=(0, 2, 3, 4))


def test_the_text_table_has_the_arms_around_one_row_per_version() -> None:
    note, header, *rows = version_table(finished()).splitlines()
    assert re.split(r"\s{2,}", header) == list(HEADINGS)
    assert [re.split(r"\s{2,}", r)[0] for r in rows] == ["old/old", "0", "1", "2", "3", "4", "new/new"]
    assert "mAP by label (gallery)" in note
    assert "recall@10 by new_model (audit)" in note
    assert re.split(r"\s{2,}", rows[2])[:4] == ["1", "1", "12.5 %", "752"]
    assert re.split(r"\s{2,}", rows[5]) == [
        *("4", "4", "100 %", "6,012", "0.600", "0.630", "0.660", "1.000", "16.5", "yes, serving")
    ]
    assert re.split(r"\s{2,}", rows[0])[4:8] == ["0.350", "0.380", "0.410", "-"]


def test_a_held_version_says_by_how_much() -> None:
    held = version_table(finished()).splitlines()[4]
    assert held.endswith("held (-0.0300)")
    assert report_json(finished())["versions"][1]["status"] == "held"


def test_a_rolled_back_run_marks_the_version_that_readers_open() -> None:
    state = finished().model_copy(update={"published": (0, 2, 3, 4, 2), "expired": frozenset({0})})
    ends = [line.split("  ")[-1] for line in version_table(state).splitlines()[3:8]]
    assert [ends[0], *ends[2:]] == ["expired", "yes, serving", "yes", "yes"]


def test_a_version_between_commit_and_publication_is_not_called_published() -> None:
    state = finished().model_copy(update={"published": (0, 2, 3)})
    assert version_table(state).splitlines()[-2].endswith("  no")
    assert Page(report_html(state)).row("4")[-1] == "no"


def test_only_the_last_plan_is_shown() -> None:
    again = plan(plan="cd34", baselines={})
    state = finished().model_copy(update={"plans": (plan(), again)})
    assert "No version yet." in version_table(state)
    assert report_json(state)["versions"] == []
    assert "0.630" not in report_html(state)


def test_the_json_survives_json_and_holds_curves_areas_and_the_share_of_the_gain() -> None:
    report = json.loads(json.dumps(report_json(finished()), allow_nan=False))
    assert report["serving"] == 4
    assert report["finished"] is True
    assert report["objective"]["gain_share"] == pytest.approx(1.0)
    assert [f"{c['relevance']}/{c['metric']}" for c in report["curves"]] == [
        *("label/map", "label/cmc@1", "qrels/recall@1", "qrels/recall@10", "new_model/recall@10")
    ]
    first = report["curves"][0]
    assert first["area"] > first["area_uncalibrated"] > first["old/old"]["value"]
    assert [p["fraction"] for p in first["points"]] == list(FRACTIONS)
    assert report["curves"][1]["area_uncalibrated"] is None
    assert report["versions"][0]["index_bytes"] == 2000


def test_the_keys_of_the_json_do_not_depend_on_how_far_the_run_got() -> None:
    assert report_json(State()).keys() == report_json(finished()).keys()
    assert report_json(State(plans=(plan(),)))["objective"].keys() == report_json(finished())["objective"].keys()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.lists(st.floats(0.01, 1), min_size=8, max_size=8))
def test_the_area_lies_between_the_lowest_and_the_highest_point(values: list[float], gaps: list[float]) -> None:
    at = [sum(gaps[:i]) for i in range(len(values))]
    points = tuple(Point(i, x, v, v, v, "published") for i, (x, v) in enumerate(zip(at, values, strict=True)))
    area = area_under(points)
    assert area is not None
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9


def test_the_area_of_a_straight_line_is_its_middle() -> None:
    line = tuple(Point(i, f, 0.2 + 0.6 * f, 0, 1, "published") for i, f in enumerate((0.0, 0.1, 0.7, 1.0)))
    assert area_under(line) == pytest.approx(0.5)
    assert area_under(line[:1]) is None


def test_a_curve_takes_the_scope_that_covers_more_versions_and_never_mixes() -> None:
    both = [metric("label", "map", 0.4), metric("label", "map", 0.7, scope="audit")]
    versions = (version(0, 0.1, metrics=both), version(1, 1.0, metrics=both[1:]))
    state = State(plans=(plan(),), versions=versions)
    found = measured_curve(state, "label", "map")
    assert found is not None
    assert found.scope == "audit"
    assert [p.value for p in found.points] == [0.7, 0.7]
    assert found.old is None


def test_an_objective_outside_the_usual_curves_is_drawn_first() -> None:
    state = State(
        plans=(plan(objective="qrels/mrr"),), versions=(version(0, 0.1, metrics=[metric("qrels", "mrr", 0.5)]),)
    )
    assert [c["metric"] for c in report_json(state)["curves"]] == ["mrr"]
    assert "MRR by qrels" in Page(report_html(state)).words


def test_the_page_draws_every_measured_curve_with_both_arms_and_hollow_held_points() -> None:
    page = Page(report_html(finished()))
    assert page.count("polyline", "line") == 5
    assert page.count("polyline", "line-plain") == 1
    assert page.count("polygon", "band") == 5
    assert page.count("line", "arm-old") == page.count("line", "arm-new") == 4
    assert page.count("circle", "dot") == 20
    assert page.count("circle", "dot-held") == 5
    for label in ("old/old 0.380", "new/new 0.630", "calibrated 0.630", "uncalibrated 0.630"):
        assert label in page.words
    assert "100 % of the way from the old system to the full new one" in page.words


def test_the_page_holds_the_version_table_with_its_counts() -> None:
    page = Page(report_html(finished()))
    assert page.row("version")[-3:] == ["quarantined", "absent", "published"]
    assert page.row("4") == [
        *("4", "4", "100 %", "6,012", "0.600", "0.630", "0.660", "1.000", "16.5", "3", "0", "yes, serving")
    ]
    assert "3 items are quarantined" in page.words
    assert "Version 1 is held: its mAP is lower than version 0's by 0.030 (0.010 to 0.050)" in page.words


def test_the_page_says_the_settings_and_why_they_were_chosen() -> None:
    words = Page(report_html(finished())).words
    for part in ("fastfill", "uncertainty", "5 %, 12.5 %, 25 %, 50 %, 100 % of the items", "old 64 dimensions"):
        assert part in words
    assert "mAP 0.512 at 0 % against 0.498 for ridge" in words


def test_the_page_says_the_shares_of_a_fused_score() -> None:
    fused = plan(stale_mode="fused", fusion={"old": 0.6, "new": 0.8})
    state = State(init=INIT, plans=(fused,))
    assert "fused: 0.36 x old + 0.64 x aligned score" in Page(report_html(state)).words
    assert report_json(state)["plan"]["fusion"] == {"old": 0.6, "new": 0.8}


def test_the_page_needs_nothing_from_outside_and_no_script() -> None:
    html = report_html(finished())
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href", "style", "onload"} & attrs.keys() for _, attrs in page.tags)
    assert not re.search(r"https?:|url\(|@import", html)
    assert any("default-src 'none'" in (attrs.get("content") or "") for tag, attrs in page.tags if tag == "meta")
    assert "prefers-color-scheme: dark" in page.style
    assert "@media print" in page.style


def flipped() -> State:
    """The finished state, with flips in each version: of CMC@1 as well, and on the audit items."""
    noise = (flip("old/old", 0.9, 0.9, name="cmc@1"), flip("old/old", 0.8, 0.8, scope="audit"))
    made = []
    for v in finished().versions:
        before = (flip("version before", 0.04, 0.1),) if v.version else ()
        made.append(v.model_copy(update={"flips": (*noise, flip("old/old", 0.05 + v.version / 100, 0.3), *before)}))
    return finished().model_copy(update={"versions": tuple(made)})


def test_the_flips_of_the_newest_version_stand_below_the_table() -> None:
    assert version_table(flipped()).splitlines()[:-1] == version_table(finished()).splitlines()
    assert version_table(flipped()).splitlines()[-1] == (
        "Queries of version 4, map by label (gallery): against old/old 9.0 % worse, 30.0 % better; "
        "against version before 4.0 % worse, 10.0 % better."
    )


def test_every_versions_flips_are_in_the_page_and_in_the_json() -> None:
    page = Page(report_html(flipped()))
    rows = [row for row in page.rows if len(row) == 9 and row[0].isdigit()]
    assert rows[0] == ["0", "5.0 % (4.0 to 6.0)", "30.0 % (28.0 to 32.0)", "0.125", "0.250", *["-"] * 4]
    assert rows[4][:2] == ["4", "9.0 % (8.0 to 10.0)"]
    assert rows[4][5:] == ["4.0 % (3.0 to 5.0)", "10.0 % (8.0 to 12.0)", "0.125", "0.250"]
    assert len(report_json(flipped())["versions"][1]["flips"]) == 4
    assert "Queries that got worse and better" not in report_html(finished())


def test_flips_of_an_objective_that_has_none_are_those_of_cmc_1() -> None:
    state = flipped().model_copy(update={"plans": (plan(objective="label/ndcg@10"),)})
    assert "Queries of version 4, cmc@1 by label (gallery): against old/old 90.0 %" in version_table(state)


def grouped(groups: dict[str, float]) -> State:
    """Two versions whose groups lie `groups` away from the overall value, and the arms."""

    def with_groups(values: Sequence[MetricValue]) -> tuple[MetricValue, ...]:
        mine = [m for m in values if m.metric == "map" and m.calibrated]
        beside = (
            m.model_copy(update={"group": name, "value": m.value + by, "queries": 10})
            for name, by in groups.items()
            for m in mine
        )
        return (*values, *beside)

    versions = (version(0, 0.1), version(1, 1.0))
    arms = {"old/old": with_groups(arm(0.35)), "new/new": with_groups(arm(0.6))}
    return State(
        plans=(plan(baselines=arms),),
        versions=tuple(v.model_copy(update={"metrics": with_groups(v.metrics)}) for v in versions),
    )


def test_groups_have_a_table_and_change_no_other_figure() -> None:
    state, plain = grouped({"big": 0.05, "small": -0.1}), grouped({})
    assert version_table(state) == version_table(plain)
    assert report_json(state)["curves"] == report_json(plain)["curves"]
    page = Page(report_html(state))
    assert page.row("group") == ["group", "queries", "old/old", "0", "1", "new/new"]
    assert page.row("small") == ["small", "10", "0.280", "0.410", "0.530", "0.530"]
    assert page.row("gap")[2:] == ["0.150"] * 4
    assert "Per group" not in report_html(plain)


def test_the_gap_between_the_groups_stands_beside_the_overall_value() -> None:
    assert report_json(grouped({}))["group_gap"] == []
    [found] = report_json(grouped({"big": 0.05, "small": -0.1}))["group_gap"]
    assert (found["scope"], found["relevance"], found["metric"]) == ("gallery", "label", "map")
    last = found["versions"][-1]
    assert last["gap"] == pytest.approx(0.15)
    assert last["overall"] == pytest.approx(0.63)
    assert (last["version"], last["best"], last["worst"]) == (1, "big", "small")


def test_a_stopped_run_has_ended_and_says_why() -> None:
    why = "97.0% of the gain from old/old to new/new is reached, stop.target_gain is 95.0%"
    last = version(1, 0.25).model_copy(update={"stopped": why})
    state = State(init=INIT, plans=(plan(),), versions=(version(0, 0.1), last), published=(0, 1))
    words = Page(report_html(state)).words
    assert "and the run has ended" in words
    assert f"It was stopped by rule: {why}." in words
    assert report_json(state)["stopped"] == why
    assert report_json(state)["finished"] is False
    assert "stopped by rule" not in report_html(finished())


def test_the_same_state_gives_the_same_bytes() -> None:
    assert report_html(finished()) == report_html(finished())


def candidate(method: str, area: float, stage: str = "calibration", weight: float = 1.0) -> dict[str, object]:
    found = {"method": method, "stale_mode": "aligned" if weight == 1 else "fused", "weight": weight}
    return {**found, "policy": "expected_gain", "calibration": "offset", "area": area, "stage": stage}


def predicted(**changes: object) -> State:
    """The finished state with what a run chose and promised: 0.43 to 0.63 of mAP on the audit items, 0.36 to 0.66."""

    def on_audit(value: float) -> MetricValue:
        return metric("label", "map", value, scope="audit")

    trials = [candidate("kernel", 0.6 - i / 100, weight=0.8 if i % 2 else 1) for i in range(10)]
    promise = [
        {"fraction": f, "relevance": "label", "metric": "map", "value": v, "low": v - 0.05, "high": v + 0.05}
        for f, v in zip(FRACTIONS, (0.43, 0.48, 0.53, 0.58, 0.63), strict=True)
    ]
    fields: dict[str, object] = {
        "baselines": {"old/old": (*arm(0.35), on_audit(0.36)), "new/new": (*arm(0.6), on_audit(0.66))},
        "choices": {"alignment.method": "kernel: best label/map", "runner-up": "kernel, fused 0.8; ahead by +0.0100"},
        "choice": {
            "objective": "label/map",
            "winner": {k: v for k, v in trials[0].items() if k not in ("area", "stage")},
            "runner_up": {k: v for k, v in trials[1].items() if k not in ("area", "stage")},
            "margin": {"value": 0.01, "low": -0.002, "high": 0.022, "queries": 450},
            "trials": [*trials, candidate("ridge", 0.9, stage="map")],
        },
        "prediction": promise,
        "form": "scale_offset",
    }
    versions = (
        v.model_copy(update={"metrics": (*v.metrics, on_audit(0.46 + v.version / 20))}) for v in finished().versions
    )
    told = {"plans": (plan(**{**fields, **changes}),), "versions": tuple(versions)}
    return finished().model_copy(update=told)


def test_the_page_says_what_was_chosen_what_came_second_and_what_was_tried_last() -> None:
    page = Page(report_html(predicted()))
    assert "Choice" in page.words
    assert "kernel: best label/map" in page.words
    assert "kernel, fused 0.8; ahead by +0.0100" in page.words
    assert "+0.0100 (-0.0020 to +0.0220) of the area under the curve, over 450 queries" in page.words
    rows = [row for row in page.rows if row[0] == "kernel"]
    assert len(rows) == 8
    assert rows[0] == ["kernel", "aligned", "1", "expected_gain", "offset", "0.6000", "chosen"]
    assert rows[1] == ["kernel", "fused", "0.8", "expected_gain", "offset", "0.5900", "runner-up"]
    assert "0.9000" not in page.words  # an area of an earlier stage


def test_an_objective_that_too_few_queries_answer_is_said_not_to_have_chosen() -> None:
    words = Page(report_html(predicted(fitted_by="new_model"))).words
    assert "new_model: too few calibration queries have an answer by label" in words
    assert "too few" not in Page(report_html(predicted(fitted_by="label"))).words


def test_predicted_and_measured_stand_side_by_side_in_page_and_json() -> None:
    page = Page(report_html(predicted()))
    # predicted 0.07 of 0.3, audit 0.1 of 0.3; on the index the way is from 0.38 to version 4's 0.63
    gallery = (version(0, 0.05).metrics[1].value - 0.38) / 0.25
    row = next(r for r in page.rows if r[:2] == ["0", "5 %"] and len(r) == 8)
    assert row[2:4] == ["0.430 (0.380 to 0.480)", "0.460 (0.440 to 0.480)"]
    assert row[5:] == ["23.3 %", "33.3 %", f"{100 * gallery:.1f} %"]
    report = report_json(predicted())
    assert report["prediction"][0]["gallery"]["share"] == pytest.approx(gallery)
    assert report["prediction_error"]["audit"] == pytest.approx(0.1)
    assert "prediction" not in report["plan"]
    assert "10 % on audit" in page.words
    assert "Predicted and measured" not in report_html(finished())


def test_the_predicted_curve_is_dashed_in_the_objectives_chart_alone() -> None:
    html = report_html(predicted())
    page = Page(html)
    assert page.count("polyline", "line-guess") == page.count("polygon", "band-guess") == 1
    assert 'class="line-guess"' in html.split("</svg>")[0]
    # the predicted end is 0.9 of the gain on the audit items: 0.38 + 0.9 * 0.25 on the index
    assert "predicted 0.605" in page.words
    assert page.count("polyline", "line") == 5
    colours = re.findall(r"--guess: (#\w+)", page.style)
    assert len(colours) == 3
    assert len(set(colours[:2])) == 2
    assert "line-guess" not in [attrs.get("class") for _, attrs in Page(report_html(finished())).tags]


def test_how_far_the_prediction_was_off_stands_below_the_table() -> None:
    *table, note = version_table(predicted()).splitlines()
    assert note.startswith("Predicted map by label, measured on gallery: mean absolute error of the share of the gain ")
    assert len(table) == len(version_table(finished()).splitlines())
    unfinished = predicted().model_copy(update={"versions": predicted().versions[:3]})
    assert "Predicted" not in version_table(unfinished)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_text_from_the_log_stays_text(inner: str) -> None:
    evil = f"</td><script>alert(1)</script><img src=x onerror=y>'\"&{inner}"
    versions = (version(0, 0.1, held=evil, metrics=[metric("label", evil, 0.5)]),)
    tried = {"method": evil, "stale_mode": "fused", "weight": 0.8, "policy": evil, "calibration": "offset"}
    named = plan(
        method=evil,
        policy=evil,
        factory=evil,
        objective=f"label/{evil}",
        choices={evil: evil},
        choice={
            "objective": f"label/{evil}",
            "winner": tried,
            "trials": [{**tried, "area": 0.5, "stage": evil}],
        },
        prediction=[{"fraction": 0.1, "relevance": "label", "metric": evil, "value": 0.5, "low": 0.4, "high": 0.6}],
    )
    page = Page(report_html(State(init=INIT, plans=(named,), versions=versions)))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "</td><script>alert(1)</script>" in page.words
    assert [[row[0], row[3]] for row in page.rows if row[-1] == "chosen"] == [[evil] * 2]


@settings(deadline=None)
@given(st.text())
def test_a_reason_cannot_steer_the_terminal(reason: str) -> None:
    state = State(plans=(plan(baselines={}),), versions=(version(0, 0.1, held=f"\x1b[2J\n\x07{reason}"),))
    table = version_table(state)
    assert len(table.split("\n")) == 3
    assert all(c.isprintable() or c == "\n" for c in table)


def test_a_log_without_a_plan_gives_a_clear_page_and_line() -> None:
    assert version_table(State()).startswith("No plan yet")
    page = Page(report_html(State()))
    assert "There is no plan yet" in page.words
    assert page.rows == []


def test_a_plan_without_versions_shows_the_settings_and_the_arms() -> None:
    page = Page(report_html(State(init=INIT, plans=(plan(),))))
    assert "no version has been built yet" in page.words
    assert "No version has been measured yet." in page.words
    assert [r[0] for r in page.rows] == ["version", "old/old", "new/new"]
    assert "fastfill" in page.words


def test_one_version_is_a_point_with_a_whisker() -> None:
    page = Page(report_html(State(plans=(plan(),), versions=(version(0, 0.05),), published=(0,))))
    assert page.count("line", "whisker") == page.count("circle", "dot") == 5
    assert page.count("polyline", "line-plain") == 1
    assert page.count("polygon", "band") == 0
    assert "Readers open version 0" in page.words.replace(" .", ".")


def test_missing_metrics_are_dashes_not_zeros() -> None:
    state = State(plans=(plan(baselines={}),), versions=(version(0, 0.05, metrics=()),))
    assert "No metric has been measured yet." in version_table(state)
    assert Page(report_html(state)).row("0")[4:8] == ["-"] * 4


def test_every_drawn_coordinate_is_inside_the_picture() -> None:
    for tag, attrs in Page(report_html(predicted())).tags:
        numbers = {k: float(attrs[k] or "") for k in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy") if attrs.get(k)}
        for key, value in numbers.items():
            assert 0 <= value <= (WIDTH if "x" in key else HEIGHT), (tag, attrs)


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_ticks_enclose_the_values_and_are_few(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found[0] <= low + 1e-6
    assert found[-1] >= low + span - 1e-6
    assert 2 <= len(found) <= 9


@given(st.lists(st.floats(26, 252), min_size=1, max_size=5))
def test_labels_keep_their_distance_their_order_and_the_frame(heights: list[float]) -> None:
    placed = spread(heights, 15, 26, 252)
    ordered = sorted(placed)
    assert all(b - a >= 15 - 1e-6 for a, b in pairwise(ordered))
    assert ordered[0] >= 26 - 1e-6
    assert ordered[-1] <= 252 + 1e-6
    assert all(
        (placed[i] <= placed[j]) for i in range(len(placed)) for j in range(len(placed)) if heights[i] < heights[j]
    )
