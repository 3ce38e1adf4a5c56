"""The envelope, the paths and the fold: what a damaged or dishonest log cannot do."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fastfill_ray.errors import CorruptFile, FastfillError, RefusedError
from fastfill_ray.log.envelope import Record, seal, unseal
from fastfill_ray.log.records import (
    FORMAT,
    ROLLBACK,
    Body,
    Claim,
    Delete,
    Expire,
    FileRef,
    Init,
    Plan,
    Publish,
    Segment,
    Undelete,
    Verdict,
    Version,
)
from fastfill_ray.log.state import State, apply, fold
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.types import canonical, check_path

INIT = Init(id_type="int64", metric="cosine", old_dim=4, new_dim=8, old_space="old", new_space="new")
FILE = FileRef(path="a/b", size=1, sha256="0" * 64)


def plan(name: str) -> Plan:
    return Plan(
        plan=name, request="r", settings={}, ids_digest="", snapshot="s", pairs="p", alignment="a", scores="c",
        method="ridge", policy="random", stale_mode="aligned", waves=(0.5, 1.0), thresholds=(9,),
        version_waves=(0, 1, 2),        wave_rows=(1, 1), rows=2, unusable_rows=0,
        factory="Flat", stale_factory="Flat", segment_rows=10, units=FILE, templates={}, objective="label/map",
        baselines={}, baseline_queries=None,
    )  # fmt: skip


def version(number: int, plan_name: str, wave: int, *, final: bool = False) -> Version:
    return Version(
        version=number, plan=plan_name, wave=wave, segments=FILE, num_segments=0, index_bytes=0, stale_rows=0,
        rows=2, new_rows=1, quarantined=0, absent=0,
        fraction=0.5, ids_digest="", metrics=(), query_metrics=None, verdict=Verdict(publish=True, reason="better"),
        seconds=0.1, final=final,
    )  # fmt: skip


def delete(salt: str = "a" * 32) -> Delete:
    return Delete(ids=FILE, rows=1, salt=salt)


def undelete(salt: str = "a" * 32) -> Undelete:
    return Undelete(ids=FILE, rows=1, salt=salt)


def chain(bodies: list[tuple[Body, int]]) -> list[bytes]:
    """Sealed records of (body, epoch) pairs."""
    records: list[bytes] = []
    for seq, (body, epoch) in enumerate(bodies):
        previous = records[-1] if records else None
        records.append(
            seal(body, seq=seq, previous=previous, txn=f"t{seq}", epoch=epoch, created="2020-01-01T00:00:00")
        )
    return records


def unchain(records: list[bytes]) -> list[Record]:
    return [
        unseal(data, seq=seq, previous=records[seq - 1] if seq else None, name=f"log/{seq}")
        for seq, data in enumerate(records)
    ]


HONEST: list[tuple[Body, int]] = [
    (INIT, 0),
    (Claim(claimed=1), 1),
    (plan("p1"), 1),
    (version(0, "p1", 0), 1),
    (Publish(version=0), 1),
    (delete(), 1),
    (Claim(claimed=2), 2),
    (version(1, "p1", 1, final=True), 2),
    (Publish(version=1), 2),
    (Expire(versions=(0,)), 2),
    (plan("p2"), 2),
    (undelete(), 2),
    (version(2, "p2", 0), 2),
]


def test_an_honest_log_folds_to_what_it_says() -> None:
    state = fold(unchain(chain(HONEST)))
    assert (state.next_seq, state.epoch, state.init) == (13, 2, INIT)
    assert state.plan is not None
    assert state.plan.plan == "p2"
    assert [v.version for v in state.plan_versions] == [2]
    assert not state.finished
    assert (state.published, state.expired, state.serving) == ((0, 1), frozenset({0}), 1)
    assert (state.deletions, state.salt, state.driver_records) == ((delete(), undelete()), "a" * 32, 11)
    assert (state.served_before, state.publish_reasons) == ((None, 0, 1), ("gate", "gate"))


def test_a_version_that_a_person_put_in_front_of_users_is_told_from_one_that_the_gate_did() -> None:
    published = State(published=(0, 1, 0), publish_reasons=("gate", "gate", ROLLBACK))
    assert published.rolled_back_to == 0
    assert published.model_copy(update={"expired": frozenset({0})}).rolled_back_to is None
    again = published.model_copy(update={"published": (0, 1, 0, 2)})  # as if the next one were published
    assert (again.serving, again.rolled_back_to) == (2, None)
    assert State().rolled_back_to is None


def stopped(number: int, plan_name: str, wave: int) -> Version:
    return version(number, plan_name, wave).model_copy(update={"stopped": "enough is reached"})


def test_a_plan_may_follow_one_that_was_stopped_and_one_that_went_on() -> None:
    start = HONEST[:5]
    state = fold(unchain(chain([*start[:3], (stopped(0, "p1", 0), 1)])))
    assert (state.stopped, state.ended, state.finished) == ("enough is reached", True, False)
    after = apply(state, _record(plan("p2"), state, 1))
    assert (after.stopped, after.ended) == (None, False)
    went_on = apply(state, _record(version(1, "p1", 1), state, 1))
    assert (went_on.stopped, went_on.ended) == (None, False)
    assert apply(went_on, _record(plan("p2"), went_on, 1)).next_wave == 0


def test_a_version_of_a_release_without_flips_groups_and_stops_is_still_read() -> None:
    later = ("flips", "stopped", "embed_seconds")
    old = {key: value for key, value in version(0, "p1", 0).model_dump().items() if key not in later}
    assert Version.model_validate(old) == version(0, "p1", 0)


def test_a_rollback_serves_the_earlier_version_and_an_expired_one_is_not_served() -> None:
    state = fold(unchain(chain([*HONEST[:9], (Publish(version=0), 2)])))
    assert state.serving == 0
    assert apply(state, _record(Expire(versions=(0,)), state, 2)).serving == 1


def _record(body: Body, state: State, epoch: int) -> Record:
    return unseal(
        seal(body, seq=state.next_seq, previous=None, txn="t", epoch=epoch, created=""),
        seq=state.next_seq, previous=None, name="record",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "epoch", "why"),
    [
        (INIT, 2, "only it, is INIT"),
        (Claim(claimed=2), 2, "already claimed"),
        (Publish(version=1), 1, "written under epoch 1"),
        (Publish(version=7), 2, "does not exist"),
        (Publish(version=0), 2, "expired"),
        (version(3, "p1", 1), 2, "not the last one"),
        (version(4, "p2", 1), 2, "expected version 3"),
        (version(3, "p2", 2), 2, "expected 1"),
        (delete(), 1, "written under epoch 1"),
        (delete("b" * 32), 2, "another salt"),
        (undelete("b" * 32), 2, "another salt"),
    ],
)
def test_a_record_that_no_honest_driver_writes_is_refused_with_its_reason(body: Body, epoch: int, why: str) -> None:
    state = fold(unchain(chain(HONEST)))
    with pytest.raises(CorruptFile, match=why):
        apply(state, _record(body, state, epoch))


def test_a_deletion_before_init_and_an_undoing_of_none_are_refused() -> None:
    with pytest.raises(CorruptFile, match="INIT"):
        fold(unchain(chain([(delete(), 0)])))
    with pytest.raises(CorruptFile, match="there is none before it"):
        fold(unchain(chain([(INIT, 0), (undelete(), 0)])))


@pytest.mark.parametrize("salt", ["", "a" * 31, "A" * 32, "a" * 33])
def test_a_salt_is_sixteen_bytes_in_hex(salt: str) -> None:
    with pytest.raises(ValidationError, match="salt"):
        delete(salt)


def test_a_first_record_other_than_init_is_refused() -> None:
    with pytest.raises(CorruptFile, match="INIT"):
        fold(unchain(chain([(Claim(claimed=1), 1)])))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_every_flipped_bit_of_a_record_is_found(data: st.DataObject) -> None:
    records = chain(HONEST)
    seq = data.draw(st.integers(0, len(records) - 1))
    changed = bytearray(records[seq])
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptFile, match=f"log/{seq}"):
        unseal(bytes(changed), seq=seq, previous=records[seq - 1] if seq else None, name=f"log/{seq}")


@given(st.data())
@settings(max_examples=100)
def test_every_truncated_record_is_refused_by_name(data: st.DataObject) -> None:
    record = chain(HONEST)[-1]
    with pytest.raises(CorruptFile, match=f"log/{len(HONEST) - 1}"):
        unseal(
            record[: data.draw(st.integers(0, len(record) - 1))],
            seq=len(HONEST) - 1,
            previous=None,
            name=f"log/{len(HONEST) - 1}",
        )


@given(
    st.binary(max_size=50) | st.sampled_from([b"[]", b"null", b"1", b'"sha256"', b"{}", b'{"sha256":1}', b"[" * 9999])
)
def test_bytes_that_are_no_record_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(CorruptFile, match="log/0"):
        unseal(data, seq=0, previous=None, name="log/0")


def test_a_record_under_another_number_or_behind_another_record_is_refused() -> None:
    records = chain(HONEST)
    with pytest.raises(CorruptFile, match="its name says 4"):
        unseal(records[3], seq=4, previous=None, name="log/4")
    with pytest.raises(CorruptFile, match="does not follow"):
        unseal(records[3], seq=3, previous=records[1], name="log/3")


def test_a_record_of_a_newer_release_is_refused_and_not_called_corrupt() -> None:
    class Later(Claim):
        shiny: int = 1

    data = seal(Later(claimed=1), seq=1, previous=None, txn="t", epoch=1, created="")
    with pytest.raises(RefusedError, match="release"):
        unseal(data, seq=1, previous=None, name="log/1")


def of_format_1(body: dict[str, Any], seq: int, previous: bytes | None) -> bytes:
    """A record as a release wrote it whose classes are gone: sealed by hand."""
    chained = "" if previous is None else hashlib.sha256(previous).hexdigest()
    content = {"seq": seq, "prev_sha256": chained, "txn": "t", "epoch": min(seq, 1), "created": "", "body": body}
    return canonical({**content, "sha256": hashlib.sha256(canonical(content)).hexdigest()})


def log_of_format_1() -> list[bytes]:
    """INIT, CLAIM and a PLAN whose choice was free-form and had arms: this release cannot validate it."""
    old_plan = plan("p1").model_dump(mode="json") | {"choice": {"winner": {"method": "ridge"}, "arms": {}}}
    bodies = [{**INIT.model_dump(mode="json"), "format": 1}, {"kind": "CLAIM", "claimed": 1}, old_plan]
    records: list[bytes] = []
    for seq, body in enumerate(bodies):
        records.append(of_format_1(body, seq, records[-1] if records else None))
    return records


@pytest.mark.parametrize("found", [1, 2, 4, "3", None])
def test_a_root_of_another_format_is_refused_with_both_formats_and_what_to_do(found: object) -> None:
    init = {**INIT.model_dump(mode="json"), "format": found, "later": "a field of another format"}
    with pytest.raises(
        RefusedError, match=rf"log/0: .*format {found}, .*format {FORMAT}. Choose another output, or use"
    ):
        unseal(of_format_1(init, 0, None), seq=0, previous=None, name="log/0")


def test_a_log_of_format_1_is_refused_at_its_first_record_not_at_one_that_no_longer_validates() -> None:
    records = log_of_format_1()
    with pytest.raises(RefusedError, match="record format 1"):
        unchain(records)
    with pytest.raises(RefusedError, match="not understood"):
        unseal(records[2], seq=2, previous=records[1], name="log/2")


@given(st.lists(st.sampled_from(HONEST), max_size=12), st.integers(0, 14))
@settings(max_examples=300, deadline=None)
def test_whatever_order_records_come_in_the_fold_keeps_its_invariants(bodies: list[Any], cut: int) -> None:
    state = State()
    for body, epoch in [*HONEST[:cut], *bodies]:
        try:
            after = apply(state, _record(body, state, epoch))
        except FastfillError:
            continue
        assert after.next_seq == state.next_seq + 1
        assert after.epoch >= state.epoch
        assert after.versions[: len(state.versions)] == state.versions
        assert [v.version for v in after.versions] == list(range(len(after.versions)))
        assert after.serving is None or after.serving in after.published
        assert after.serving not in after.expired
        state = after


@given(st.integers(0, len(HONEST)))
def test_folding_in_two_steps_is_folding_at_once(cut: int) -> None:
    records = unchain(chain(HONEST))
    state = fold(records[:cut])
    for record in records[cut:]:
        state = apply(state, record)
    assert state == fold(records)


def segment(**changes: Any) -> Segment:
    fields = {
        "bucket": 0, "wave": 1, "state": "stale", "space": "aligned", "dim": 8, "rows": 1, "ids_digest": "",
        "index": FILE, "ids": FILE,
    }  # fmt: skip
    return Segment.model_validate({**fields, **changes})


def test_a_fusion_is_set_iff_a_segment_or_a_plan_is_fused() -> None:
    fusion = Fusion(old=0.6, new=0.8)
    fused = segment(space="fused", fusion=fusion)
    assert Segment.model_validate_json(fused.model_dump_json()) == fused
    for wrong in ({"space": "fused"}, {"fusion": fusion}, {"space": "new", "fusion": fusion}):
        with pytest.raises(ValidationError, match="set iff the space is fused"):
            segment(**wrong)
    fields = plan("p").model_dump()
    assert Plan.model_validate({**fields, "stale_mode": "fused", "fusion": fusion}).fusion == fusion
    for wrong in ({"stale_mode": "fused"}, {"fusion": fusion}):
        with pytest.raises(ValidationError, match="set iff it is fused"):
            Plan.model_validate({**fields, **wrong})


def test_records_from_before_there_were_fused_segments_are_understood() -> None:
    for whole in (plan("p"), segment()):
        fields = whole.model_dump()
        del fields["fusion"]
        assert type(whole).model_validate(fields) == whole


@pytest.mark.parametrize(("old", "needed"), [(0.0, False), (0.6, True)])
def test_only_a_segment_that_holds_old_vectors_needs_old_queries(old: float, needed: bool) -> None:
    assert segment(space="fused", fusion=Fusion(old=old, new=1)).needs_old_queries is needed
    assert segment().needs_old_queries is False
    assert segment(space="new", state="new").needs_old_queries is False


@pytest.mark.parametrize("factors", [{"old": 0, "new": 0}, {"old": -1, "new": 1}, {"old": 1, "new": float("nan")}])
def test_factors_that_make_no_vector_are_refused(factors: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Fusion(**factors)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.b", "-a", "a b", "a\n", "é", "s3://a/b", "a" * 513]
)
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        check_path(path)
    with pytest.raises(ValidationError, match="plain relative path"):
        FileRef(path=path, size=0, sha256="")


@pytest.mark.parametrize(
    "path", ["a", "log/00000000000000000000.json", "vectors/ab12/wave=01/c00000001.0f.parquet", "_x"]
)
def test_a_plain_path_is_kept(path: str) -> None:
    assert check_path(path) == path
