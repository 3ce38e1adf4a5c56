"""A search's hits as people see them."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.report.hits import Hit, display_width, hits_table

HITS = [[Hit("lamp", 0.75), Hit("a much longer name", 0.5), Hit("gone", -1.25)]]
TEXTS = {"lamp": ["Gives light\nat night", None], "a much longer name": ["x" * 100, b"1234"]}


def test_one_line_per_hit_with_the_payload_shortened_to_the_terminal() -> None:
    assert hits_table(HITS, ["text", "image"], TEXTS, 70).splitlines() == [
        "rank    score  id                  text              image",
        "   1   0.7500  lamp                Gives light a...  -",
        "   2   0.5000  a much longer name  xxxxxxxxxxxxx...  4 bytes",
        "   3  -1.2500  gone                -                 -",
    ]


def test_without_a_payload_there_are_ids_and_scores_alone() -> None:
    assert hits_table(HITS[:1], [], {}, 80).splitlines()[:2] == ["rank    score  id", "   1   0.7500  lamp"]
    assert hits_table([[], []], [], {}, 80) == "query  rank  score  id"


def test_an_id_is_never_shortened() -> None:
    hits = [[Hit("i" * 200, 1.0), Hit(7, 0.5)]]
    first, second = hits_table(hits, ["text"], {"i" * 200: ["text"], 7: ["text of 7"]}, 60).splitlines()[1:]
    assert first.endswith("i" * 200)
    assert second.endswith("text of 7")


def test_arrays_are_said_by_their_shape() -> None:
    assert "float32 (2, 3)" in hits_table([[Hit(1, 1.0)]], ["image"], {1: [np.zeros((2, 3), np.float32)]}, 80)


@given(st.text(max_size=300), st.text(max_size=30), st.integers(40, 200))
def test_nothing_acts_on_the_terminal_or_runs_over_its_width(text: str, name: str, width: int) -> None:
    table = hits_table([[Hit(5, 1.0), Hit(6, 1.0)]], [name, "other"], {5: [text, text]}, width)
    lines = table.split("\n")
    assert len(lines) == 3
    assert all(display_width(line) <= width for line in lines)
    acting = {"Cc", "Cs", "Zl", "Zp"}
    assert not [c for line in lines for c in line if unicodedata.category(c) in acting]


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("", 0)])
def test_the_width_of_a_text_is_that_of_its_characters(text: str, columns: int) -> None:
    assert display_width(text) == columns
