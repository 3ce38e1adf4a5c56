"""What to do now, decided from the log alone: every state of a run has one sentence, and it is the right one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.log.records import ROLLBACK, Verdict, Version
from fastfill_ray.log.state import State
from fastfill_ray.report.decision import Decision, decision
from tests.report.logs import (
    arm,
    better,
    finished,
    flipped,
    judged,
    living,
    metric,
    plan,
    promised,
    rolled_back,
    running,
    version,
    worse,
)

ALLOWED = Verdict(publish=True, reason="within max_regression", difference=-0.03, low=-0.05, high=-0.01)
UNDECIDED = Verdict(publish=True, reason="undecided", difference=-0.01, low=-0.03, high=0.01)
UNKNOWN = Verdict(publish=True, reason="nothing to compare with")


def changed(state: State, **of_newest: Any) -> State:
    newest = state.versions[-1].model_copy(update=of_newest)
    return state.model_copy(update={"versions": (*state.versions[:-1], newest)})


def told(state: State) -> tuple[str, str]:
    made = decision(state)
    return made.answer.action, made.words


def test_without_a_plan_nothing_can_be_decided() -> None:
    assert decision(State()) == Decision(decision(State()).answer)
    assert told(State()) == ("unknown", "Run the backfill first: there is no plan yet, so nothing can be decided.")


def test_a_plan_says_what_version_0_is_predicted_to_have_against_the_old_system_and_what_the_rest_brings() -> None:
    state = running(0)
    assert told(state) == (
        "wait",
        "Make version 0 and decide then: on the audit items it is predicted to have mAP 0.430 (0.380 to 0.480), "
        "the old system has 0.360, the last version is predicted to have 0.630 (0.580 to 0.680).",
    )
    made = decision(state)
    assert (made.gained, made.cost) == ("", "")
    assert made.rest == "5,711 items in 4 waves."


def test_a_plan_that_predicts_no_gain_says_to_stop_before_anything_is_spent() -> None:
    audit = {
        name: (metric("label", "map", value, scope="audit"),) for name, value in (("old/old", 0.7), ("new/new", 0.6))
    }
    assert told(running(0, promised(baselines=audit))) == (
        "stop",
        "Stop here, there is nothing to gain: on the audit items no version is expected to have more than mAP 0.630, "
        "the old system has 0.700.",
    )


def predicting(state: State, queries: int, **changes: Any) -> State:
    """The same, its prediction over so many queries."""
    of = state.plans[0]
    promise = tuple(each.model_copy(update={"queries": queries, **changes}) for each in of.prediction)
    return state.model_copy(update={"plans": (of.model_copy(update={"prediction": promise}),)})


def test_a_plan_whose_best_version_may_be_better_or_worse_than_the_old_system_says_that_it_cannot_be_told() -> None:
    audit = {"old/old": (metric("label", "map", 0.64, scope="audit"),)}
    told_of = told(predicting(running(0, promised(baselines=audit)), 75))
    assert told_of == (
        "wait",
        "Make version 0 and decide then: from these pairs and 75 queries it cannot be told whether there is a gain. "
        "On the audit items the best version is predicted to have mAP 0.630 (0.580 to 0.680), the old system has "
        "0.640. Each version is measured when it is made; more queries, or more pairs, would tell before.",
    )
    # Of a plan of before it is not known how many queries there are.
    assert "from these pairs and the queries it cannot be told" in told(running(0, promised(baselines=audit)))[1]
    for old, action in ((0.679, "wait"), (0.681, "stop")):
        audit = {"old/old": (metric("label", "map", old, scope="audit"),)}
        assert told(running(0, promised(baselines=audit)))[0] == action


@pytest.mark.parametrize("old", [0.2, 0.5, 0.9])
def test_so_few_queries_that_they_tell_nothing_decide_nothing(old: float) -> None:
    audit = {"old/old": (metric("label", "map", old, scope="audit"),)}
    state = running(0, promised(baselines=audit))
    assert told(predicting(state, 3)) == (
        "wait",
        "Make version 0 and decide then: only 3 queries are held out that have an answer, and at least 16 are needed "
        "to tell anything, so that what is predicted tells next to nothing. Each version is measured when it is made.",
    )
    assert "only 1 query is held out that has an answer" in told(predicting(state, 1))[1]
    assert "tells next to nothing" not in told(predicting(state, 16))[1]


def test_a_first_version_that_is_predicted_to_be_worse_may_be_held() -> None:
    audit = {
        name: (metric("label", "map", value, scope="audit"),) for name, value in (("old/old", 0.5), ("new/new", 0.7))
    }
    assert (
        "the old system has 0.500, so that it may be held, the last version is"
        in told(running(0, promised(baselines=audit)))[1]
    )


def test_a_plan_without_a_prediction_says_what_is_known() -> None:
    audit = {"new/new": (metric("label", "map", 0.6, scope="audit"),)}
    assert told(running(0, promised(prediction=(), baselines=audit))) == (
        "wait",
        "Make version 0 and decide then: the full new model has mAP 0.600.",
    )
    assert told(running(0, plan(baselines={})))[1].endswith("decide then: nothing is predicted or measured yet.")


def test_a_prediction_for_the_published_index_is_compared_with_the_old_system_there() -> None:
    of = promised()
    of = of.model_copy(update={"prediction": tuple(p.model_copy(update={"scope": "gallery"}) for p in of.prediction)})
    words = told(running(0, of))[1]
    assert (
        "in the published index it is predicted to have mAP 0.430 (0.380 to 0.480), the old system has 0.380, " in words
    )


def test_a_prediction_by_another_relevance_than_the_objectives_is_named_and_not_added_to_its_figures() -> None:
    of = promised()
    by_model = [p.model_copy(update={"relevance": "new_model"}) for p in of.prediction]
    of = of.model_copy(update={"prediction": tuple(by_model)})
    assert "it is predicted to have mAP by new_model 0.430" in told(running(0, of))[1]
    assert "the old system" not in told(running(0, of))[1]
    assert "to bring +0.150 of mAP by new_model, the next" in told(running(2, of))[1]
    flat = of.model_copy(
        update={"prediction": tuple(p.model_copy(update={"value": 0.4 + 0.01 * i}) for i, p in enumerate(by_model))}
    )
    # The held version lost 0.030 of another figure than the 0.030 that are left.
    assert told(running(2, flat, verdict=worse("worse")))[0] == "go on"


def test_a_plan_of_another_order_names_the_version_that_comes_next() -> None:
    anew = promised().model_copy(update={"plan": "other"})
    state = living().model_copy(update={"plans": (*living().plans, anew)})
    assert told(state)[1].startswith("Make version 7 and decide then: ")
    assert decision(state).gained == "Version 6, of an earlier order, is served meanwhile."


def test_while_the_rest_is_predicted_to_bring_something_the_run_goes_on() -> None:
    # 20 s of embedding for 755 rows, 3.5 s of building for a version; 5,260 rows in 3 versions are left
    assert told(running(2)) == (
        "go on",
        "Go on: the 3 waves that are left are predicted to bring +0.150 of mAP, the next one +0.050, for about 2 min "
        "of work.",
    )
    made = decision(running(2))
    assert made.rest == (
        "5,260 items in 3 waves. Predicted: +0.150 of mAP, 55.6 % of the whole gain, for about 2 min of work."
    )
    assert made.cost == "26 s of work so far, 20 s of it embedding; training and choosing are not counted."
    assert told(running(4))[1].startswith("Go on: the last wave is predicted to bring +0.050 of mAP, for about ")


def test_what_is_gained_is_what_is_served_against_the_old_system() -> None:
    made = decision(running(2))
    assert made.gained == (
        "Version 1, which is served, has mAP 0.517 (0.497 to 0.537), the old system 0.380 (0.360 to 0.400): +0.137, "
        "54.8 % of the way to the full new model."
    )
    assert decision(flipped()).gained.endswith("Of the queries 30 % are better off than before, 9 % worse.")
    without = promised(baselines={})
    assert decision(running(2, without)).gained.endswith(" The old system was not measured.")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.43, 0.48, 0.60, 0.601, 0.602), "Stop here: the 2 waves that are left are predicted to bring +0.002 of mAP"),
        ((0.43, 0.48, 0.60, 0.59, 0.58), "Stop here, the curve has peaked: the next wave is predicted to bring -0.010"),
        ((0.43, 0.48, 0.60, 0.58, 0.599), "Stop here, the curve has peaked: the 2 waves that are left are predicted"),
    ],
)
def test_where_the_rest_is_predicted_to_bring_little_the_run_stops(values: tuple[float, ...], words: str) -> None:
    action, said = told(running(3, promised(values)))
    assert action == "stop"
    assert said.startswith(words)
    if "peaked" not in words:
        assert said.endswith(" of work, only 0.8 % of the whole gain.")


def test_a_prediction_that_the_last_wave_has_clearly_beaten_stops_nothing() -> None:
    # Of version 2 nothing was predicted: it brought at least 0.010, more than a twentieth of the gain of 0.122.
    action, said = told(running(3, promised((0.43, 0.48, 0.48, 0.481, 0.482))))
    assert action == "go on"
    assert said.startswith(
        "Go on: version 2 brought more than was predicted of it, +0.030 (+0.010 to +0.050), though the 2 waves that "
    )


def test_a_curve_that_is_predicted_to_peak_before_the_end_says_until_where_to_go_on() -> None:
    action, said = told(running(2, promised((0.43, 0.48, 0.53, 0.63, 0.5))))
    assert (action, said.partition(", for")[0]) == (
        "go on",
        "Go on: the waves up to wave 3 are predicted to bring +0.150 of mAP, the next one +0.050",
    )
    assert told(running(2, promised((0.43, 0.48, 0.63, 0.6, 0.5))))[1].startswith("Go on: the next wave is predicted")


def test_where_nothing_is_predicted_the_run_goes_on_and_says_so() -> None:
    assert told(running(2, promised(prediction=()))) == ("go on", "Go on: what is left is not predicted.")
    assert decision(running(2, promised(prediction=()))).rest == "5,260 items in 3 waves, for about 2 min of work."


def test_an_undecided_version_is_served_and_what_is_left_decides() -> None:
    assert told(running(2, verdict=UNDECIDED)) == told(running(2))


def test_a_held_version_does_not_stop_a_run_whose_rest_makes_up_for_it() -> None:
    assert told(running(2, verdict=worse("worse"))) == (
        "go on",
        "Go on: version 1 is held, because it is worse than version 0 by 0.030 (0.010 to 0.050) of mAP, but the 3 "
        "waves that are left are predicted to bring +0.150 of mAP, the next one +0.050, for about 2 min of work.",
    )
    flat = promised((0.43, 0.48, 0.49, 0.50, 0.505))
    action, said = told(running(2, flat, verdict=worse("worse")))
    assert action == "stop"
    assert said.startswith(
        "Stop here and keep version 0: version 1 is held, because it is worse than version 0 by 0.030"
    )
    assert told(running(2, promised(prediction=()), verdict=worse("worse")))[0] == "go on"


def test_a_first_version_that_is_held_leaves_users_with_the_old_system() -> None:
    state = running(1, verdict=worse("worse"))
    assert told(state)[1].startswith("Go on: version 0 is held, because it is worse than the old system by 0.030 ")
    assert decision(state).gained == "Nothing yet: no version is published, users have the old system."


def test_where_the_curve_has_peaked_it_says_what_the_served_version_brought_and_for_how_little() -> None:
    last = running(5).versions[-1]
    lower = [
        value.model_copy(update={"value": 0.4}) if (value.relevance, value.metric) == ("label", "map") else value
        for value in last.metrics
    ]
    state = changed(running(5, verdict=worse("worse")), final=True, fraction=1.0, metrics=tuple(lower))
    words = told(state)[1]
    assert words.startswith("Stop here and keep version 3: mAP rose from 0.380 to 0.5")
    assert " of the items brought " in words
    assert words.endswith("; version 4 is held, because it is worse than version 3 by 0.030 (0.010 to 0.050) of mAP, "
                          "and it is the last one.")  # fmt: skip


def test_a_last_version_that_is_held_means_that_the_curve_has_peaked() -> None:
    assert told(changed(running(5, verdict=worse("worse")), final=True)) == (
        "stop",
        "Stop here and keep version 3: version 4 is held, because it is worse than version 3 by 0.030 (0.010 to 0.050) "
        "of mAP, and it is the last one.",
    )


def test_a_version_that_the_gate_let_pass_though_it_is_worse_is_to_be_rolled_back() -> None:
    made = decision(running(3, verdict=ALLOWED))
    assert (made.answer.action, made.answer.version, made.words) == (
        "roll back",
        1,
        "Roll back to version 1: version 2, which is served, is worse than version 1 by 0.030 (0.010 to 0.050) of mAP.",
    )


def test_where_each_version_is_worse_than_the_one_before_the_best_of_them_is_named() -> None:
    state = running(3)
    versions = (state.versions[0], *(v.model_copy(update={"verdict": ALLOWED}) for v in state.versions[1:]))
    made = decision(state.model_copy(update={"versions": versions}))
    assert made.answer.version == 0
    assert made.words.endswith(" of mAP, and that one is worse than others before it.")
    expired = state.model_copy(update={"versions": versions, "expired": frozenset({0})})
    assert decision(expired).answer.version == 1


def test_nobody_is_told_to_roll_back_to_another_gallery_or_to_what_is_gone() -> None:
    assert decision(running(1, verdict=ALLOWED)).answer.action == "go on"
    gone = running(2, verdict=ALLOWED, expired=frozenset({0}))
    assert decision(gone).answer.action == "go on"
    state = changed(living(), verdict=ALLOWED, cause="wave")
    plans = (*state.plans[:-1], state.plans[-1].model_copy(update={"ids_digest": "1"}))
    assert decision(state).answer.version == 5
    assert decision(state.model_copy(update={"plans": plans})).answer.action == "done"


def test_after_a_rollback_by_hand_nothing_is_advised_but_to_find_out_why() -> None:
    assert told(rolled_back(running(3), 1)) == (
        "stop",
        "Stop until it is clear why somebody rolled back to version 1: version 2 is better than version 1, +0.030 "
        "(+0.010 to +0.050); `fastfill-ray rollback ROOT --to 2` publishes that one again; the next start goes on and "
        "publishes what is not worse than version 1.",
    )
    ended = rolled_back(judged(finished()), 2)
    assert told(ended)[1].endswith(
        "version 4 is better than version 3, +0.030 (+0.010 to +0.050); `fastfill-ray rollback ROOT --to 4` publishes "
        "that one again."
    )
    assert decision(ended).gained.startswith("Version 2, which is served, has mAP ")
    again = rolled_back(ended, 4)
    assert told(again) == told(finished())


def test_after_a_rollback_from_a_change_no_difference_is_claimed() -> None:
    assert told(rolled_back(living(), 5))[1].endswith(
        "somebody rolled back to version 5: version 6 is newer; `fastfill-ray rollback ROOT --to 6` publishes that one "
        "again."
    )


def test_a_held_version_that_somebody_published_is_to_be_rolled_back_unless_there_was_a_reason() -> None:
    made = decision(rolled_back(running(2, verdict=worse("worse")), 1))
    assert (made.answer.action, made.answer.version) == ("roll back", 0)
    assert made.words.startswith("Roll back to version 0, unless somebody published this one for a reason: version 1, ")


def test_a_rule_that_stopped_the_run_is_named_with_what_is_left() -> None:
    action, said = told(changed(running(3), stopped="3 hours are spent, stop.budget_hours is 2"))
    assert action == "stop"
    assert said.startswith(
        "Stop here, as the config's rule says: 3 hours are spent, stop.budget_hours is 2; the 2 waves "
    )
    held = changed(running(3, verdict=worse("worse")), stopped="enough")
    assert told(held)[1].startswith(
        "Stop here and keep version 1, as the config's rule says: enough; version 2 is held"
    )


def test_a_finished_run_says_what_was_gained_against_what_and_for_how_much_work() -> None:
    assert told(finished()) == (
        "done",
        "Done: every item is re-embedded; mAP rose from 0.380 with the old system to 0.630, for 72 s of work; "
        "the first 12.5 % of the items brought 54.8 % of the gain.",
    )
    assert decision(finished()).rest == ""
    some = changed(finished(), fraction=6000 / 6012, new_rows=6000)
    assert "all but 12 items are re-embedded" in told(some)[1]
    part = finished().model_copy(update={"plans": (plan(waves=(0.05, 0.6)),)})
    assert "the plan ends with 60 % of the items re-embedded" in told(changed(part, fraction=0.6))[1]


def test_a_finished_run_without_a_gain_says_so() -> None:
    no_gain = finished().model_copy(update={"plans": (plan(baselines={"old/old": arm(0.7)}),)})
    assert told(no_gain)[1].startswith(
        "Done, but without a gain: every item is re-embedded; mAP is 0.630, the old system"
    )
    unknown = finished().model_copy(update={"plans": (plan(baselines={}),)})
    assert told(unknown)[1] == "Done: every item is re-embedded; mAP is 0.630, for 72 s of work."


def test_a_version_that_its_driver_could_not_publish_any_more_is_published_by_the_next_start() -> None:
    state = running(2)
    late = state.model_copy(update={"published": (0,), "publish_reasons": ("gate",)})
    assert told(late) == ("go on", "Go on: version 1 is made, and the next start publishes it.")


def test_an_objective_that_was_not_measured_decides_nothing() -> None:
    unmeasured: list[Version] = [version(0, 0.1, metrics=())]
    state = State(plans=(plan(),), versions=tuple(unmeasured), published=(0,))
    assert told(state) == ("unknown", "Nothing can be decided: mAP was not measured on any version.")


def test_a_gallery_that_changed_is_followed_before_anything_else() -> None:
    state = living()
    before = state.model_copy(update={"plans": state.plans[:2], "versions": state.versions[:3], "published": (0, 1, 2)})
    assert told(before)[1].startswith("Go on: the next version brings in the 61 items of the gallery that differ; ")
    nightly = state.plans[2].model_copy(update={"version_waves": (4,)})
    night = state.model_copy(
        update={"plans": (*state.plans[:2], nightly), "versions": state.versions[:6], "published": tuple(range(6))}
    )
    assert told(night)[1] == "Go on: the next version brings in the 1,001 items of the gallery that differ."
    assert decision(night).rest == ""
    assert told(state)[1].startswith("Done: every item is re-embedded; ")
    between = state.model_copy(
        update={"plans": state.plans[:2], "versions": state.versions[:4], "published": (0, 1, 2, 3)}
    )
    assert told(between)[0] == "go on"


def test_deleted_items_change_no_decision() -> None:
    assert told(changed(finished(), deleted=100)) == told(finished())


numbers = st.integers(0, 4)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([better(), worse("worse"), worse(""), ALLOWED, UNDECIDED, UNKNOWN]), max_size=5),
    st.lists(st.tuples(numbers, st.sampled_from(["gate", ROLLBACK])), max_size=6),
    st.lists(st.one_of(st.none(), numbers), max_size=5),
    st.frozensets(numbers, max_size=2),
    st.lists(st.floats(0, 1), max_size=5),
    st.fixed_dictionaries({"final": st.booleans(), "stopped": st.sampled_from([None, "enough"])}),
)
def test_every_state_has_one_sentence_that_begins_with_what_to_do(
    verdicts: list[Verdict],
    published: list[tuple[int, str]],
    served_before: list[int | None],
    expired: frozenset[int],
    values: list[float],
    of_newest: dict[str, Any],
) -> None:
    made = len(verdicts)
    published = [(number, reason) for number, reason in published if number < made]
    of = promised(tuple(values))
    of = of.model_copy(update={"prediction": of.prediction[: len(values)]})
    versions = [v.model_copy(update={"verdict": r}) for v, r in zip(running(made).versions, verdicts, strict=True)]
    state = running(0, of).model_copy(
        update={
            "versions": tuple(versions),
            "published": tuple(number for number, _ in published),
            "publish_reasons": tuple(reason for _, reason in published),
            # A version is held against an older one.
            "served_before": tuple(b if b is not None and b < i else None for i, b in enumerate(served_before)),
            "expired": expired,
        }
    )
    words = decision(changed(state, **of_newest) if made else state).words
    assert re.match(r"(Make version|Go on|Stop|Roll back to|Done)\b.*[^.]\.$", words), words
    assert not re.search(r"\. |\.\.|  |None", words), words
