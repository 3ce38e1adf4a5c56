"""What a run does next, decided from the log alone; and what binds a plan to its config and inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.config import BackfillConfig, StopConfig, input_paths, load_config, plan_settings
from fastfill_ray.errors import ConfigError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.envelope import seal, unseal
from fastfill_ray.log.next_step import Step, next_step
from fastfill_ray.log.records import Body, Claim, Plan, Publish, Verdict, Version
from fastfill_ray.log.state import State, apply, fold
from fastfill_ray.ordering.schedule import parse_until
from fastfill_ray.report.result import BackfillResult
from fastfill_ray.stages.preflight import input_pins, list_inputs
from tests.log.test_records import INIT, chain, delete, plan, unchain, undelete, version

WAVES = (0.2, 0.5, 1.0)
PLAN, VERSION_0, PUBLISH, STOP = Step("plan"), Step("version", 0), Step("publish"), Step("stop")


def a_plan(name: str = "p1", request: str = "mine", waves: tuple[float, ...] = WAVES) -> Plan:
    update = {"request": request, "waves": waves, "wave_rows": (1,) * (len(waves) + 2)}
    return plan(name).model_copy(update={**update, "version_waves": tuple(range(len(waves) + 1))})


def a_version(
    number: int, wave: int, *, name: str = "p1", held: bool = False, last: int = len(WAVES), stopped: str | None = None
) -> Version:
    verdict = Verdict(publish=not held, reason="because")
    return version(number, name, wave, final=wave == last).model_copy(update={"verdict": verdict, "stopped": stopped})


def state_of(*bodies: Body) -> State:
    return fold(unchain(chain([(INIT, 0), (Claim(claimed=1), 1), *((body, 1) for body in bodies)])))


def published(*waves: int) -> list[Body]:
    """A plan whose versions of these waves are made and published."""
    return [a_plan(), *(body for k in waves for body in (a_version(k, k), Publish(version=k)))]


HELD_AT_THE_END = (*published(0, 1, 2), a_version(3, 3, held=True))


@pytest.mark.parametrize(
    ("bodies", "last_wave", "expected"),
    [
        ([], None, PLAN),
        ([], -1, PLAN),
        ([a_plan()], None, VERSION_0),
        ([a_plan()], 0, VERSION_0),
        ([a_plan()], -1, STOP),
        # The driver died between VERSION and PUBLISH.
        ([a_plan(), a_version(0, 0)], None, PUBLISH),
        ([a_plan(), a_version(0, 0)], 0, PUBLISH),
        ([*published(0, 1, 2), a_version(3, 3)], None, PUBLISH),
        (published(0), None, Step("version", 1)),
        (published(0), 0, STOP),
        (published(0), -1, STOP),
        (published(0, 1), None, Step("version", 2)),
        (published(0, 1), 1, STOP),
        (published(0, 1), 3, Step("version", 2)),
        # A held version is not published, and does not stop the run.
        ([*published(0), a_version(1, 1, held=True)], None, Step("version", 2)),
        ([*published(0), a_version(1, 1, held=True)], 1, STOP),
        ([a_plan(), a_version(0, 0, held=True)], None, Step("version", 1)),
        # Nor does a rollback, which is not undone.
        ([*published(0, 1), Publish(version=0)], None, Step("version", 2)),
        ([*published(0, 1, 2, 3), Publish(version=0)], None, STOP),
        (published(0, 1, 2, 3), None, STOP),
        (published(0, 1, 2, 3), 3, STOP),
        (list(HELD_AT_THE_END), None, STOP),
        # A second plan starts from its own version 0.
        ([*published(0, 1, 2, 3), a_plan("p2")], None, VERSION_0),
    ],
)
def test_the_next_step_follows_from_the_log(bodies: list[Body], last_wave: int | None, expected: Step) -> None:
    assert next_step(state_of(*bodies), "mine", last_wave=last_wave) == expected


@pytest.mark.parametrize("bodies", [[], published(0), [a_plan(), a_version(0, 0)], list(HELD_AT_THE_END)])
@given(st.data())
def test_deletions_change_nothing_in_what_comes_next(bodies: list[Body], data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(bodies)), min_size=1, max_size=3)), reverse=True)
    among = list(bodies)
    for place in places:
        among.insert(place, delete())
    among.append(undelete())
    assert next_step(state_of(*among), "mine") == next_step(state_of(*bodies), "mine")


@pytest.mark.parametrize(
    "bodies", [[a_plan()], published(0), published(0, 1, 2), published(0, 1, 2, 3), list(HELD_AT_THE_END)]
)
def test_another_request_gets_a_plan_of_its_own_at_any_time(bodies: list[Body]) -> None:
    assert next_step(state_of(*bodies), "theirs") == PLAN
    assert next_step(state_of(*bodies), "theirs", last_wave=-1) == PLAN


@pytest.mark.parametrize("bodies", [[a_plan(), a_version(0, 0)], [*published(0, 1, 2), a_version(3, 3)]])
def test_a_version_that_its_driver_could_not_publish_is_published_before_anything_else(bodies: list[Body]) -> None:
    assert next_step(state_of(*bodies), "theirs", last_wave=-1) == PUBLISH


# `a_version` takes 0.1 s of work: the first budget is used up by any version, the second by none.
SPENT, PLENTY = StopConfig(budget_hours=1e-6), StopConfig(budget_hours=9)


def stopped_at(wave: int, *, held: bool = False) -> list[Body]:
    """A plan that a rule ended after `wave`, before its last."""
    made = a_version(wave, wave, held=held, stopped="enough")
    return [*published(*range(wave)), made, *([] if held else [Publish(version=wave)])]


@pytest.mark.parametrize(
    ("bodies", "rule", "expected"),
    [
        # Stopped, and the rule still says so.
        (stopped_at(0), SPENT, STOP),
        (stopped_at(1), SPENT, STOP),
        (stopped_at(1, held=True), SPENT, STOP),
        # The rule was loosened or left out: it goes on.
        (stopped_at(0), PLENTY, Step("version", 1)),
        (stopped_at(1), PLENTY, Step("version", 2)),
        (stopped_at(1), StopConfig(), Step("version", 2)),
        # The driver died between VERSION and PUBLISH of the version at which it stopped.
        (stopped_at(1)[:-1], SPENT, PUBLISH),
        (stopped_at(1)[:-1], PLENTY, PUBLISH),
        # A rule that was tightened afterwards ends the run as well.
        (published(0, 1), SPENT, STOP),
        (published(0, 1), PLENTY, Step("version", 2)),
        # It never ends a run before version 0, or hides the end.
        ([], SPENT, PLAN),
        ([a_plan()], SPENT, VERSION_0),
        (published(0, 1, 2, 3), SPENT, STOP),
        ([*stopped_at(1), a_plan("p2")], SPENT, VERSION_0),
        # What was loosened once, and stopped again later.
        ([*stopped_at(0), a_version(1, 1), Publish(version=1)], PLENTY, Step("version", 2)),
        ([*stopped_at(0), a_version(1, 1, stopped="again"), Publish(version=1)], SPENT, STOP),
    ],
)
def test_a_run_ends_where_its_rule_says_so_and_goes_on_when_it_is_loosened(
    bodies: list[Body], rule: StopConfig, expected: Step
) -> None:
    assert next_step(state_of(*bodies), "mine", rule=rule) == expected


@pytest.mark.parametrize("rule", [SPENT, PLENTY, StopConfig()])
def test_another_request_gets_a_plan_of_its_own_once_the_last_one_was_stopped(rule: StopConfig) -> None:
    assert next_step(state_of(*stopped_at(1)), "theirs", rule=rule) == PLAN


def test_the_closing_words_say_why_a_rule_ended_the_run_and_what_was_embedded_ahead() -> None:
    state = state_of(*stopped_at(1))
    result = BackfillResult("out", state, finished=False, stopped="enough is reached", overrun_rows=1234)
    assert result.closing_words() == (
        "out: stopped by rule after 2 versions: enough is reached; 1,234 rows of later waves are embedded already, and "
        "count if it goes on; version 1 is served."
    )
    assert result.exit_code == 0
    assert "rows" not in BackfillResult("out", state, finished=False, stopped="enough is reached").closing_words()


def commit(state: State, body: Body, epoch: int | None = None) -> State:
    data = seal(
        body, seq=state.next_seq, previous=None, txn="t", epoch=state.epoch if epoch is None else epoch, created=""
    )
    return apply(state, unseal(data, seq=state.next_seq, previous=None, name="record"))


def act(state: State, step: Step, request: str, waves: tuple[float, ...], held: bool) -> State:
    """What a driver appends for one step."""
    if step.do == "plan":
        return commit(state, a_plan(f"p{len(state.plans)}", request, waves))
    if step.do == "publish":
        return commit(state, Publish(version=state.plan_versions[-1].version))
    assert state.plan is not None
    number, last = len(state.versions), len(state.plan.waves)
    return commit(state, a_version(number, step.wave, name=state.plan.plan, held=held, last=last))


Event = Literal["go", "go, held", "restart", "rollback"]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.tuples(st.sampled_from(["go", "go, held", "restart", "rollback"]), st.integers(-1, 4)), max_size=25),
)
@settings(max_examples=150, deadline=None)
def test_however_a_run_is_cut_and_resumed_it_ends_with_every_wave_once(
    plans: list[int], events: list[tuple[Event, int]]
) -> None:
    state = commit(commit(State(), INIT), Claim(claimed=1), 1)
    script = iter(events)
    for number, num_waves in enumerate(plans):
        request, waves = f"request {number}", tuple((k + 1) / num_waves for k in range(num_waves))
        for _ in range(200):
            # When the script is over, the run is left alone.
            event, limit = next(script, ("go", num_waves))
            if event == "restart":
                state = commit(state, Claim(claimed=state.epoch + 1), state.epoch + 1)
            elif event == "rollback" and state.published:
                state = commit(state, Publish(version=state.published[0]))
            before = len(state.plan_versions) if state.plan and state.plan.request == request else 0
            step = next_step(state, request, last_wave=limit)
            if step.do != "stop":
                state = act(state, step, request, waves, held=event == "go, held")
                # A limit is never overrun.
                assert step.do != "version" or before <= limit
            elif state.finished and limit == num_waves:
                break
        else:
            pytest.fail("the run did not end")
        assert [v.wave for v in state.plan_versions] == list(range(num_waves + 1))
        assert next_step(state, request) == STOP
    assert len(state.plans) == len(plans)
    assert len(state.versions) == sum(plans) + len(plans)
    assert [v.version for v in state.versions] == list(range(len(state.versions)))
    for made in state.versions:
        assert (made.version in state.published) == made.verdict.publish


def test_the_exit_code_is_2_only_if_the_newest_version_is_held() -> None:
    for bodies, code in (
        ([a_plan()], 0),
        (published(0, 1, 2, 3), 0),
        ([*published(0), a_version(1, 1, held=True), a_version(2, 2), Publish(version=2)], 0),
        ([*published(0), a_version(1, 1, held=True)], 2),
        (list(HELD_AT_THE_END), 2),
    ):
        result = BackfillResult("out", state_of(*bodies), finished=False)
        assert result.exit_code == code
        assert ("is held: because" in result.closing_words()) == (code == 2)


# What a plan is bound to


def config(**sections: Any) -> dict[str, Any]:
    return {
        "gallery": {"path": "g", "payload_columns": ["text"], "label_column": "topic"},
        "new_model": {"embedder": "m:M", "dim": 8, "kwargs": {"token": "s3cret"}},
        "waves": list(WAVES),
        "output": "out",
        **sections,
    }


@pytest.mark.parametrize(
    "override",
    [
        "resources.embed_actors=[2, 4]",
        "resources.chunk_rows=7",
        "quarantine.max_rows=99",
        "storage.s3_endpoint=http://127.0.0.1:9",
        "output=elsewhere",
        "new_model.batch_size=3",
        "serving.max_regression=0.5",
        "stop.target_gain=0.9",
        "stop={target_gain: 0.5, budget_hours: 3}",
    ],
)
def test_a_setting_outside_the_plan_may_change_between_runs(override: str) -> None:
    assert plan_settings(load_config(config(), [override])) == plan_settings(load_config(config()))


@pytest.mark.parametrize(
    "override",
    [
        "waves=[0.5, 1]",
        "seed=1",
        "new_model.kwargs.token=other",
        "new_model.metric=l2",
        "old_model.kwargs.a=1",
        "pairs.count=500",
        "alignment.method=ridge",
        "policy.name=random",
        "serving.stale_mode=fused",
        "index.factory=IVF16,Flat",
        "objective.metric=cmc@1",
        "gallery.old_vector_column=other",
        "gallery.group_column=team",
    ],
)
def test_a_setting_of_the_plan_makes_another_request(override: str) -> None:
    assert plan_settings(load_config(config(), [override])) != plan_settings(load_config(config()))


def test_a_models_kwargs_do_not_get_into_the_log() -> None:
    assert "s3cret" not in str(plan_settings(load_config(config())))


@pytest.mark.parametrize(
    ("until", "last_wave"), [(None, None), ("plan", -1), ("version0", 0), ("wave:1", 1), ("wave:3", 3)]
)
def test_until_names_the_last_wave(until: str | None, last_wave: int | None) -> None:
    assert parse_until(until, load_config(config()).waves) == last_wave


@pytest.mark.parametrize(
    "until", ["", "wave", "wave:0", "wave:4", "wave:-1", "wave:1.5", "Plan", "version1", "wave:1 "]
)
def test_an_until_that_names_no_point_of_this_run_is_refused(until: str) -> None:
    with pytest.raises(ConfigError, match=r"plan, version0 or wave:K with K from 1 to 3 is expected"):
        parse_until(until, load_config(config()).waves)


def pins_of(config: BackfillConfig) -> list[Any]:
    listings = list_inputs(InputStore(), input_paths(config))
    return [pin for listing in listings.values() for pin in input_pins(listing)]


def test_every_input_file_is_part_of_the_request(tmp_path: Path) -> None:
    names = ("gallery/a.parquet", "gallery/b.parquet", "queries.parquet", "qrels.parquet", "classifier.npz")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": [1]}), path)
    given = load_config(
        config(
            gallery={"path": str(tmp_path / "gallery"), "payload_columns": ["text"], "label_column": "topic"},
            queries={
                "path": str(tmp_path / "queries.parquet"),
                "payload_columns": ["text"],
                "label_column": "topic",
                "qrels_path": str(tmp_path / "qrels.parquet"),
            },
            new_model={"embedder": "m:M", "dim": 8, "classifier": str(tmp_path / "classifier.npz")},
        )
    )
    pins = pins_of(given)
    assert {Path(path).relative_to(tmp_path).as_posix() for path, _, _ in pins} == set(names)
    assert pins_of(given) == pins
    for name in names:
        before = pins_of(given)
        path = tmp_path / name
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert pins_of(given) != before
    pq.write_table(pa.table({"id": [2]}), tmp_path / "gallery" / "c.parquet")
    assert len(pins_of(given)) == len(names) + 1
    (tmp_path / "qrels.parquet").unlink()
    with pytest.raises(ConfigError, match=r"queries\.qrels_path.*does not exist"):
        pins_of(given)
