"""The text tables say what the log says, whatever state the run is in, and cannot steer a terminal."""

from __future__ import annotations

import re

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.index.deletions import Deleted, write_ids
from fastfill_ray.log.records import Delete
from fastfill_ray.log.state import State
from fastfill_ray.report.deletions import deletions_json, deletions_note
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.model import HEADINGS
from fastfill_ray.report.text import version_table
from tests.faults import MemoryFiles
from tests.report.logs import finished, flipped, plan, predicted, version
from tests.report.pages import Page

SALT = "0123456789abcdef" * 2


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
    assert Page(report_html(state)).row("4", of="seconds")[-1] == "no"


def test_the_flips_of_the_newest_version_stand_below_the_table() -> None:
    assert version_table(flipped()).splitlines()[:-1] == version_table(finished()).splitlines()
    assert version_table(flipped()).splitlines()[-1] == (
        "Queries of version 4, map by label (gallery): against old/old 9.0 % worse, 30.0 % better; "
        "against version before 4.0 % worse, 10.0 % better."
    )


def test_flips_of_an_objective_that_has_none_are_those_of_cmc_1() -> None:
    state = flipped().model_copy(update={"plans": (plan(objective="label/ndcg@10"),)})
    assert "Queries of version 4, cmc@1 by label (gallery): against old/old 90.0 %" in version_table(state)


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
    assert len(table.split("\n")) == 3
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
