"""Paths: built and parsed in one place, all under the root, none taken for another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.storage import paths as layout
from fastfill_ray.types import check_path, fingerprint

FP = fingerprint("x")
SHA = "0123456789abcdef" * 4


@given(st.integers(0, 10**12))
def test_a_record_path_parses_back_and_sorts_by_number(seq: int) -> None:
    assert layout.parse_record(layout.record_path(seq)) == seq
    assert layout.record_path(seq) < layout.record_path(seq + 1)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**8 - 1), st.booleans())
def test_a_unit_receipt_parses_back_to_its_unit(digest: int, number: int, is_chunk: bool) -> None:
    unit = layout.chunk_unit(f"{digest:016x}") if is_chunk else layout.query_unit(number)
    folder = layout.wave_folder(FP, 3)
    assert layout.parse_unit_receipt(layout.unit_receipt(folder, unit)) == unit
    assert layout.parse_unit_receipt(layout.unit_output(folder, unit, SHA)) is None


def test_unknown_names_are_left_alone() -> None:
    for path in ("log/1.json", "log/latest", "log/00000000000000000000.json.bak", "x/00000000000000000000.json"):
        assert layout.parse_record(path) is None
    for path in (
        layout.stage_receipt("pairs", FP),
        "a/c1.receipt.json",
        "a/xc0000000000000001.receipt.json",
        "a/c0000000000000001.json",
    ):
        assert layout.parse_unit_receipt(path) is None


def test_every_path_is_plain_and_no_two_are_equal() -> None:
    folder = layout.wave_folder(FP, 1)
    paths = [
        layout.record_path(0),
        layout.snapshot_path(FP),
        *(layout.stage_receipt(stage, FP) for stage in ("pairs", "alignment", "scores", "evaluation")),
        layout.stage_output("alignment", FP, "model.safetensors", SHA),
        layout.stage_output("alignment", FP, "alignment.json", SHA),
        layout.unit_output(folder, layout.chunk_unit(FP), SHA),
        layout.items_output(folder, layout.chunk_unit(FP), SHA),
        layout.unit_receipt(folder, layout.chunk_unit(FP)),
        layout.unit_receipt(folder, layout.query_unit(1)),
        *layout.segment_paths(FP, 1, 2, "stale", 3, "u1"),
        *layout.segment_paths(FP, 1, 2, "new", 3, "u1"),
        layout.deletion_vector_path(FP, 1, 2, "new", 3, "u1"),
        layout.template_path(FP, "stale", "u1"),
        layout.REPORT_HTML,
        layout.REPORT_METRICS,
    ]
    assert [check_path(path) for path in paths] == paths
    assert len(set(paths)) == len(paths)


def test_outputs_with_other_bytes_have_other_names() -> None:
    assert (
        layout.unit_output("vectors/p", "c0000000000000001", SHA)
        == "vectors/p/c0000000000000001.0123456789abcdef.parquet"
    )
    assert layout.unit_output("vectors/p", "c0000000000000001", "f" * 64) != layout.unit_output(
        "vectors/p", "c0000000000000001", SHA
    )
    assert (
        layout.stage_output("alignment", "f", "model.safetensors", SHA)
        == "alignment/f/model.0123456789abcdef.safetensors"
    )


def test_both_outputs_of_a_unit_are_parsed_and_are_one_piece_of_work() -> None:
    wave, unit = layout.wave_folder(FP, 2), layout.chunk_unit(FP)
    for path in (layout.unit_output(wave, unit, SHA), layout.items_output(wave, unit, SHA)):
        assert layout.parse_unit_output(path) == (wave, unit)
        assert layout.work_of(path) == f"{wave}/{unit}"
    assert not layout.items_output(wave, unit, SHA).startswith(f"{wave}/c"), "vectors are c*.parquet"
    assert layout.parse_unit_output(f"{wave}/items.{SHA[:16]}.parquet") is None


def test_what_says_that_an_object_is_done_is_found_by_its_path() -> None:
    wave, scores = layout.wave_folder(FP, 2), layout.stage_folder("scores", FP)
    unit = layout.chunk_unit(FP)
    done = {
        layout.snapshot_path(FP): (layout.snapshot_path(FP),),
        layout.unit_receipt(wave, unit): (layout.unit_receipt(wave, unit),),
        layout.unit_output(wave, unit, SHA): (layout.unit_receipt(wave, unit),),
        layout.items_output(wave, unit, SHA): (layout.unit_receipt(wave, unit),),
        layout.unit_output(scores, unit, SHA): (layout.unit_receipt(scores, unit), layout.stage_receipt("scores", FP)),
        layout.stage_output("choice", FP, "choice.json", SHA): (layout.stage_receipt("choice", FP),),
        layout.stage_output("scores", FP, "thresholds.parquet", SHA): (f"{scores}/thresholds.receipt.json",),
    }
    assert {path: layout.receipts_for(path) for path in done} == done


def test_what_a_record_names_has_no_receipt() -> None:
    for path in (
        layout.record_path(3),
        layout.units_path(FP, SHA),
        layout.template_path(FP, "new", "u1"),
        layout.stage_output("evaluation", FP, "wave-01.parquet", SHA),
        *layout.segment_paths(FP, 1, 2, "new", 3, "u1"),
        layout.deletion_vector_path(FP, 1, 2, "new", 3, "u1"),
    ):
        assert layout.receipts_for(path) == ()


def test_receipts_that_are_set_aside_are_taken_for_none() -> None:
    receipt = layout.unit_receipt(layout.wave_folder(FP, 2), layout.chunk_unit(FP))
    assert layout.parse_unit_receipt(layout.set_aside_path(receipt, SHA)) is None
