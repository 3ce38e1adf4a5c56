"""The text tables say what the log says, whatever state the run is in, and cannot steer a terminal."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.index.deletions import Deleted, write_ids
from fastfill_ray.log.records import Delete, Verdict, Version
from fastfill_ray.log.state import State
from fastfill_ray.report.deletions import deletions_json, deletions_note
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.text import seconds_table, version_table
from tests.faults import MemoryFiles
from tests.report.logs import finished, flipped, living, metric, plan, predicted, version
from tests.report.pages import Page

SALT = "0123456789abcdef" * 2


def cells(row: str) -> list[str]:
    return re.split(r"\s{2,}", row.strip())


def gated(number: int, fraction: float, low: float, high: float, *, publish: bool = True) -> Version:
    """A version on which the gate has looked at the interval [low, high]."""
    reason = "undecided: it reaches both sides" if publish and low < 0 else "the interval says it"
    verdict = Verdict(publish=publish, reason=reason, difference=(low + high) / 2, low=low, high=high)
    return version(number, fraction).model_copy(update={"verdict": verdict})


def judged() -> State:
    """Five versions, of which the gate has said all that it can say; the third one is served again."""
    versions = (
        version(0, 0.05).model_copy(update={"verdict": Verdict(publish=True, reason="nothing to compare with")}),
        gated(1, 0.125, 0.01, 0.03),
        gated(2, 0.25, -0.004, 0.02),
        gated(3, 0.5, -0.03, -0.01, publish=False),
        gated(4, 1.0, 0.0, 0.01),
    )
    return finished().model_copy(update={"versions": versions, "published": (0, 1, 2, 4, 2)})


def test_the_text_table_has_the_arms_around_one_row_per_version() -> None:
    note, header, *rows = version_table(finished()).splitlines()
    assert cells(header) == [
        *("version", "wave", "new", "CMC@1", "mAP", "R@1", "recall@10", "gain"),
        *("gate (95 % interval)", "verdict", "seconds"),
    ]
    assert [cells(row)[0] for row in rows[:7]] == ["old/old", "0", "1", "2", "3", "4", "new/new"]
    assert "mAP by label (gallery)" in note
    assert "recall@10 by new_model (audit)" in note
    assert cells(rows[2])[:4] == ["1", "1", "12.5 %", "0.487"]
    assert cells(rows[5]) == [
        *("4", "4", "100 %", "0.600", "0.630", "0.660", "1.000", "+0.048", "-", "not compared, served", "16")
    ]
    assert cells(rows[0])[3:7] == ["0.350", "0.380", "0.410", "-"]


def test_every_verdict_is_said_with_its_interval_and_the_gain_over_the_version_before() -> None:
    rows = {cells(row)[0]: cells(row) for row in version_table(judged()).splitlines()[2:9]}
    assert [rows[number][-2] for number in "01234"] == [
        *("not compared", "better", "undecided, served", "held", "undecided")
    ]
    assert [rows[number][-3] for number in "01234"] == [
        *(
            "-",
            "+0.020 (+0.010 to +0.030)",
            "+0.008 (-0.004 to +0.020)",
            "-0.020 (-0.030 to -0.010)",
            "+0.005 (+0.000 to +0.010)",
        )
    ]
    assert [rows[number][-4] for number in "01234"] == ["+0.110", "+0.027", "+0.028", "+0.037", "+0.048"]
    assert [(v["finding"], v["status"]) for v in report_json(judged())["versions"]] == [
        *(("not compared", "published"), ("better", "published"), ("undecided", "published"), ("worse", "held")),
        ("undecided", "published"),
    ]
    assert report_json(judged())["versions"][1]["gain"] == pytest.approx(0.027, abs=1e-3)


def test_the_table_stays_within_120_columns_whatever_it_holds() -> None:
    large = [
        v.model_copy(update={"new_rows": 10**9, "seconds": 1e7, "version": v.version + 10_000})
        for v in judged().versions
    ]
    huge = judged().model_copy(update={"versions": tuple(large), "published": (10_002,)})
    for state in (judged(), living(), predicted(), huge):
        assert max(map(len, version_table(state).splitlines())) <= 120
    assert "mAP" in version_table(huge).splitlines()[1], "the objective"


def test_an_objective_that_has_no_column_of_its_own_gets_one() -> None:
    state = finished()
    values = [v.model_copy(update={"metrics": (*v.metrics, metric("label", "ndcg@10", 0.7))}) for v in state.versions]
    state = state.model_copy(update={"plans": (plan(objective="label/ndcg@10"),), "versions": tuple(values)})
    assert "nDCG@10" in version_table(state).splitlines()[1]


def test_a_held_version_says_by_how_much() -> None:
    assert cells(version_table(finished()).splitlines()[4])[-3:-1] == ["-0.030", "held"]
    assert report_json(finished())["versions"][1]["status"] == "held"


def test_a_rolled_back_run_marks_the_version_that_readers_open() -> None:
    state = finished().model_copy(update={"published": (0, 2, 3, 4, 2), "expired": frozenset({0})})
    ends = [cells(line)[-2] for line in version_table(state).splitlines()[3:8]]
    assert ends == ["not compared, expired", "held", "not compared, served", "not compared", "not compared"]


def test_a_version_between_commit_and_publication_is_not_called_published() -> None:
    state = finished().model_copy(update={"published": (0, 2, 3)})
    assert cells(version_table(state).splitlines()[7])[-2] == "not compared, not published"
    assert Page(report_html(state)).row("4", of="seconds")[-1] == "no"


def test_the_flips_of_the_newest_version_stand_below_the_table() -> None:
    table, below = (version_table(state).splitlines() for state in (finished(), flipped()))
    assert below[: len(table)] == table
    assert " ".join(below[len(table) :]) == (
        "Queries of version 4, map by label (gallery): against old/old 9.0 % worse, 30.0 % better; "
        "against version before 4.0 % worse, 10.0 % better."
    )


def test_flips_of_an_objective_that_has_none_are_those_of_cmc_1() -> None:
    state = flipped().model_copy(update={"plans": (plan(objective="label/ndcg@10"),)})
    told = version_table(state).replace("\n", " ")
    assert "Queries of version 4, cmc@1 by label (gallery): against old/old 90.0 %" in told


def test_how_far_the_prediction_was_off_stands_below_the_table() -> None:
    *table, note = version_table(predicted()).splitlines()
    assert note.startswith("Predicted map by label, measured on gallery: mean absolute error of the share of the gain ")
    assert len(table) == len(version_table(finished()).splitlines())
    unfinished = predicted().model_copy(update={"versions": predicted().versions[:3]})
    assert "Predicted" not in version_table(unfinished)


@settings(deadline=None)
@given(st.text())
def test_a_reason_cannot_steer_the_terminal(reason: str) -> None:
    state = State(plans=(plan(baselines={}),), versions=(version(0, 0.1, held=f"\x1b[2J\n\x07{reason}"),))
    table = version_table(state)
    plain = State(plans=(plan(baselines={}),), versions=(version(0, 0.1, held="plain"),))
    assert len(table.split("\n")) == len(version_table(plain).split("\n"))
    assert all(c.isprintable() or c == "\n" for c in table)


def deleted(*ids: str) -> tuple[State, Deleted]:
    """The finished state with these ids deleted."""
    files = MemoryFiles()
    records = [Delete(ids=write_ids(files, pa.array(ids), SALT), rows=len(ids), salt=SALT)] if ids else []
    state = finished().model_copy(update={"deletions": tuple(records)})
    return state, Deleted.read(files, records)


def test_status_says_how_many_ids_are_deleted_and_how_many_the_served_version_holds_where_it_knows() -> None:
    state, nothing = deleted()
    assert (deletions_note(state, nothing), deletions_json(state, nothing)) == ("", {"ids": 0, "in_served": 0})
    state, two = deleted("a", "b")
    assert deletions_note(state, two) == "2 ids are deleted: searches leave them out, whatever version is opened."
    assert deletions_json(state, two) == {"ids": 2, "in_served": None}
    last = state.versions[-1].model_copy(update={"deleted": 1, "deletions": two.fingerprint})
    state = state.model_copy(update={"versions": (*state.versions[:-1], last)})
    assert deletions_note(state, two) == "2 ids are deleted; 1 of them is in version 4."
    assert deletions_json(state, two) == {"ids": 2, "in_served": 1}
    assert deletions_note(*deleted("a")).startswith("1 id is deleted: ")
    unpublished = state.model_copy(update={"published": ()})
    assert deletions_json(unpublished, two) == {"ids": 2, "in_served": None}


def test_the_report_says_how_many_items_of_the_newest_version_are_deleted() -> None:
    state = finished()
    assert "are deleted" not in report_html(state)
    last = state.versions[-1].model_copy(update={"deleted": 1234})
    state = state.model_copy(update={"versions": (*state.versions[:-1], last)})
    assert "1,234 items are deleted, as of version 4: no search returns them." in report_html(state)
    assert [v["deleted"] for v in report_json(state)["versions"]] == [0, 0, 0, 0, 1234]


def test_the_seconds_are_a_short_table_the_longest_first_with_waves_and_builds_as_one_each() -> None:
    seconds = {
        "inspect": 0.1,
        "pairs": 30.0,
        "build 0": 2.0,
        "wave 1": 40.0,
        "build 1": 3.0,
        "wave 2": 24.0,
        "plan": 0.9,
    }
    assert [cells(line) for line in seconds_table(seconds)] == [
        ["stage", "seconds", "share"],
        ["wait for waves", "64.0", "64 %"],
        ["pairs", "30.0", "30 %"],
        ["build versions", "5.0", "5 %"],
        ["all others", "1.0", "1 %"],
    ]
    assert seconds_table({}) == []
