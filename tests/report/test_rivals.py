"""Whether a backfill is worth it, in words: from figures alone."""

from __future__ import annotations

from typing import Any

import pytest

from fastfill_ray.report.rivals import few_answers, metric_lines, rival_lines, worth_words

OBJECTIVE = "qrels/recall@1"


def interval(value: float, half: float = 0.02) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "queries": 400}


def way(name: str, first: float, last: float, *, behind: float | None, new: float = 0.5) -> dict[str, Any]:
    curve = [first + (last - first) * i / 21 for i in range(22)]
    values = {
        "curve": curve,
        **{"area": sum(curve) / 22, "low": 0.0, "high": 1.0},
        "below_new": interval(new - first),
        "behind": None if behind is None else interval(behind),
    }
    return {"name": name, "values": {OBJECTIVE: values}}


def rivals_of(
    gain: float | None = 0.2, choice: float = 0.25, mapped: float | None = 0.2, behind: float = 0.05
) -> dict[str, Any]:
    ways = [way("the choice", choice, 0.5, behind=None)]
    if gain is not None:
        ways.append(way("swap at the end", 0.5 - gain, 0.5 - gain, behind=behind + 0.1))
        ways.append(way("rank merge", 0.5 - gain, 0.5, behind=behind))
    if mapped is not None:
        ways.append(way("query map", mapped, mapped, behind=0.2))
    return {"objective": OBJECTIVE, "gain": {} if gain is None else {OBJECTIVE: interval(gain)}, "ways": ways}


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.2, "The new model is better than the old one: +20.0 (+18.0..+22.0) points of recall@1 by qrels. That is"),
        (0.01, "The new model is not measurably better than the old one: +1.0 (-1.0..+3.0)"),
        (-0.1, "The new model is worse than the old one: -10.0 (-12.0..-8.0)"),
        (None, "Whether the new model is better than the old one is not measured: the queries have no old vectors."),
    ],
)
def test_the_first_sentence_is_on_the_new_model(gain: float | None, words: str) -> None:
    assert worth_words(rivals_of(gain))[0].startswith(words)


def test_the_new_models_own_answers_cannot_tell_whether_it_is_better() -> None:
    rivals = rivals_of()
    own = "new_model/recall@10"
    for each in rivals["ways"]:
        each["values"] = {own: each["values"][OBJECTIVE]}
    words = worth_words(rivals | {"objective": own, "gain": {own: interval(0.2)}})
    assert words[0].startswith("Whether the new model is better than the old one is not measured: relevance new_model")


@pytest.mark.parametrize(
    ("choice", "mapped", "words"),
    [
        (
            0.35,
            0.2,
            "the choice gives 35.0 and the old index, asked with mapped queries, 20.0; new/new is 50.0, old/old",
        ),
        (0.25, 0.2, "Both are below the old system."),
        (0.25, None, "the choice gives 25.0; new/new is 50.0, old/old 30.0. That is below the old system."),
        (0.49, 0.2, "not measurably above the choice at 0 %: serve that, and embed only what is new."),
        (0.4, 0.495, "not measurably above mapped queries: serve that, and embed only what is new."),
    ],
)
def test_the_second_says_what_costs_nothing(choice: float, mapped: float | None, words: str) -> None:
    assert words in worth_words(rivals_of(choice=choice, mapped=mapped))[1]


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (0.05, "the best other way, rank merge, 40.0. The choice is ahead: +5.0 (+3.0..+7.0)."),
        (0.01, "The choice is not measurably ahead: +1.0 (-1.0..+3.0)."),
        (-0.05, "The choice is behind: -5.0 (-7.0..-3.0)."),
    ],
)
def test_the_third_names_the_best_rival(behind: float, words: str) -> None:
    assert words in worth_words(rivals_of(behind=behind))[2]


def test_the_table_has_seven_points_of_every_way_and_fits_the_terminal() -> None:
    rivals = rivals_of()
    lines = rival_lines({"rivals": rivals | {"words": worth_words(rivals)}})
    assert lines[2].split()[:3] == ["way", "0", "%"]
    assert lines[2].count("%") == 7
    assert [line.split("  ")[0] for line in lines[3:7]] == ["the choice", "swap at the end", "rank merge", "query map"]
    assert max(len(line) for text in lines for line in text.splitlines()) <= 120


def test_a_better_metric_is_named_with_its_gain() -> None:
    data = {"metric": "l2", "rivals": {"objective": "label/map"}, "better_metric": None}
    assert metric_lines(data) == []
    [words] = metric_lines(data | {"better_metric": {"metric": "cosine", "gain": interval(0.03)}})
    assert "by cosine than by l2, which was given: +3.0 (+1.0..+5.0) points of mAP by label" in words.replace("\n", " ")


def test_where_too_few_queries_have_an_answer_it_is_said_how_many_and_what_decided_instead() -> None:
    def counts(calibration: int, audit: int) -> dict[str, dict[str, int]]:
        answered = {"calibration": calibration, "audit": audit}
        return {split: {"queries": 300, "answered": count} for split, count in answered.items()}

    assert few_answers("qrels/recall@1", counts(60, 60), 300) == ""
    assert few_answers("new_model/map", counts(1, 1), None) == ""
    assert few_answers("qrels/recall@1", counts(60, 33), 300) == (
        "By qrels/recall@1, which was asked for, only 33 of 300 queries have an answer among the audit items; at least "
        "60 are needed. So it is reported by new_model instead."
    )
    few = few_answers("qrels/recall@1", counts(45, 33), 300)
    assert few == (
        "By qrels/recall@1, which was asked for, only 45 of 300 queries have an answer among the calibration items and "
        "33 of 300 queries have an answer among the audit items; at least 60 are needed. So it is chosen and reported "
        "by new_model instead."
    )
    assert few_answers("label/map", counts(90, 70), 5) == (
        "Only 5 queries are given, and at least 16 are needed: the items of each split ask instead."
    )
    rivals = rivals_of()
    own = "new_model/recall@10"
    for each in rivals["ways"]:
        each["values"] = {own: each["values"][OBJECTIVE]}
    words = worth_words(rivals | {"objective": own, "gain": {own: interval(0.2)}}, few)
    assert words[0] == few
    assert words[1].endswith("More answers among the items would tell: give more pairs, or more queries with answers.")
    assert "judgements" not in words[1]
