"""What counts as a hit, and that the measured ranking of a version is the one that a search of it returns."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.experiment.items import Queries
from fastfill_ray.index.reader import open_index
from fastfill_ray.log.records import Segment
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import Fusion, fusion_of
from fastfill_ray.retrieval.metrics import per_query
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.stages import evaluate
from fastfill_ray.stages.evaluate import (
    GalleryRanking,
    GallerySearch,
    PerRelevance,
    hits_of,
    search_one_segment,
    search_segments,
)
from fastfill_ray.stages.hits import SegmentHits
from fastfill_ray.storage.files import Files
from fastfill_ray.types import F32, I64, Metric
from tests.index.test_reader import DIM, OLD_DIM, Root
from tests.index.test_segment import vectors


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def queries(labels: np.ndarray | None = None, judged: Any = None, ids: np.ndarray | None = None) -> Queries:
    ids = objects("q0", "q1") if ids is None else ids
    vectors = np.zeros((len(ids), 2), np.float32)
    are_items = judged is None and ids[0] == "a"
    return Queries(ids, vectors, labels=labels, judged=judged, are_items=are_items)


ITEMS, SCORES, ROWS = objects("a", "b", "c"), np.array([[3.0, 2.0, 1.0]] * 2, np.float32), np.array([[0, 1, 2]] * 2)


def measured(asked: Queries, labels: np.ndarray | None) -> PerRelevance:
    ranking = GalleryRanking(GallerySearch(asked, "ip", depth=3))
    ranking.add(hits_of(asked, SCORES, ROWS, pa.array(ITEMS), labels), Calibration())
    return ranking.per_query()


def test_a_label_counts_all_its_items_and_none_counts_nothing() -> None:
    hits = hits_of(queries(objects("x", None)), SCORES, ROWS, pa.array(ITEMS), objects("x", None, "x"))
    assert hits.num_same_label is not None
    assert hits.num_same_label.tolist() == [2, 0]
    assert hits.same_label.tolist() == [[1, 0, 1], [0, 0, 0]]
    values = measured(queries(objects("x", None)), objects("x", None, "x"))["label"]
    assert values["map"][0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(values["map"][1])


def test_queries_without_any_label_are_left_out_and_not_an_error() -> None:
    values = measured(queries(objects(None, None)), objects("x", "y", None))["label"]
    assert all(np.isnan(column).all() for column in values.values())


def test_an_item_that_asks_does_not_find_itself_and_an_unlabelled_one_has_no_value() -> None:
    values = measured(queries(objects("x", None), ids=objects("a", "b")), objects("x", None, "x"))["label"]
    assert values["map"][0] == 0.5
    assert all(np.isnan(column[1]) for column in values.values())


def test_a_judgement_counts_once_and_where_its_item_is_in_the_gallery() -> None:
    judged = [Judgement(0, "b"), Judgement(0, "b"), Judgement(0, "elsewhere"), Judgement(1, "elsewhere")]
    values = measured(queries(judged=judged), None)
    assert list(values) == ["qrels"]
    assert values["qrels"]["map"].tolist()[:1] == [0.5]
    assert values["qrels"]["recall@10"][0] == 1
    assert np.isnan(values["qrels"]["map"][1])


ITEM_COUNTS = (30, 20, 40, 5)


def whole_numbers(rows: int, dim: int, seed: int) -> F32:
    """Vectors whose scores every processor computes alike, and of which many are equal."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, dim)).astype(np.float32)


def mixed_version(
    path: Path, metric: Metric, factory: str, known: Sequence[Any] = ("x", "y", "z", None)
) -> tuple[Root, list[Segment], np.ndarray]:
    """New, aligned and fused segments, the stale ones calibrated; and the items' labels. Ids are 0, 1, ..."""
    fusion = fusion_of(0.5, "cosine") if metric == "cosine" else Fusion(old=1, new=1)
    root = Root(path, metric, "int64", factory, fusion)
    labels = objects(*known)[np.random.default_rng(1).integers(0, len(known), sum(ITEM_COUNTS))]
    starts = np.cumsum((0, *ITEM_COUNTS))
    ids = [range(start, start + count) for start, count in zip(starts, ITEM_COUNTS, strict=False)]
    names = [labels[list(part)].tolist() for part in ids]
    vectors = [whole_numbers(count, DIM, seed) for seed, count in enumerate(ITEM_COUNTS)]
    old = [whole_numbers(count, OLD_DIM, seed + 9) for seed, count in enumerate(ITEM_COUNTS)]
    if metric == "cosine":
        vectors = [part + np.float32(0.1) for part in vectors]
        old = [part + np.float32(0.1) for part in old]
    segments = [
        root.segment(vectors[0], ids[0], None, names[0]),
        root.segment(vectors[1], ids[1], Calibration(scale=2, offset=-1), names[1]),
        root.fused(old[2], vectors[2], ids[2], Calibration(scale=0.5, offset=2), names[2]),
        root.fused(old[3], vectors[3], ids[3], Calibration(scale=1, offset=-3), names[3]),
    ]
    root.commit(*segments)
    return root, segments, labels


def queries_of(
    count: int, labels: np.ndarray, *, are_items: bool, known: Sequence[Any] = ("x", "y", "nowhere", None)
) -> Queries:
    rng = np.random.default_rng(2)
    own = rng.choice(len(labels), count, replace=False)
    new = whole_numbers(count, DIM, 20)
    return Queries(
        fingerprint="f",
        ids=own.astype(object) if are_items else objects(*(f"q{i}" for i in range(count))),
        new=new + np.float32(0.2),
        old=whole_numbers(count, OLD_DIM, 21) + np.float32(0.2),
        labels=labels[own] if are_items else objects(*known)[rng.integers(0, len(known), count)],
        judged=None
        if are_items
        else tuple(Judgement(q, i, g) for q, i, g in rng.integers(0, (count, 110, 4), (200, 3)).tolist()),
        are_items=are_items,
    )


def shared(one: object, other: object) -> bool:
    """Whether two labels, or lists of labels, have one in common."""
    members = [{label} if isinstance(label, str) else set(label or ()) for label in (one, other)]  # type: ignore[call-overload]
    return bool(members[0] & members[1])


def by_search(ids: I64, asked: Queries, labels: np.ndarray, depth: int) -> PerRelevance:
    """Metrics of the ids (Q, K) that a search returned, judged one by one; items have the ids 0, 1, ..."""
    found = {}
    grade_of: dict[tuple[int, int], float] = {}
    for query, item, grade in asked.judged or ():
        grade_of[query, int(item)] = max(grade, grade_of.get((query, int(item)), 0))
    for relevance in ("label", "qrels") if asked.judged is not None else ("label",):
        hits, totals = np.zeros((len(ids), depth)), np.zeros(len(ids), np.int64)
        best = np.zeros((len(ids), len(labels)))
        for query, name in enumerate(asked.ids.tolist()):

            def grade(item: int, query: int = query, name: object = name, relevance: str = relevance) -> float:
                if item == name or item < 0:
                    return 0
                if relevance == "qrels":
                    return grade_of.get((query, item), 0)
                label = asked.labels[query] if asked.labels is not None else None
                return shared(label, labels[item])

            ranked = [grade(item) for item in ids[query].tolist() if item != name][:depth]
            hits[query, : len(ranked)] = ranked
            best[query] = sorted((grade(item) for item in range(len(labels))), reverse=True)
            totals[query] = np.count_nonzero(best[query])
        found[relevance] = per_query(hits, totals, best[:, :10] if relevance == "qrels" else None)
    return found


@pytest.mark.parametrize("are_items", [True, False])
@pytest.mark.parametrize("depth", [sum(ITEM_COUNTS), 7])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_every_metric_follows_from_the_hits_that_a_search_returns(
    tmp_path: Path, metric: Metric, factory: str, depth: int, are_items: bool
) -> None:
    root, segments, labels = mixed_version(tmp_path, metric, factory)
    asked = queries_of(12, labels, are_items=are_items)
    # Whole numbers again, so that ties within and between segments are ties on every processor.
    asked = Queries(**{**vars(asked), "new": np.round(asked.new), "old": np.round(asked.old)})
    search = GallerySearch(asked, metric, depth)
    ranking = GalleryRanking(search)
    for segment in segments:
        ranking.add(search_one_segment(root.files, search, segment), segment.calibration)
    scores, ids = open_index(str(tmp_path)).search(asked.new, search.num_hits, old_queries=asked.old)
    assert (np.diff(scores[:, :depth], axis=1) == 0).any(), "there are ties"
    measured, expected = ranking.per_query(), by_search(ids, asked, labels, depth)
    assert measured.keys() == expected.keys()
    for relevance, metrics in expected.items():
        for name, values in metrics.items():
            np.testing.assert_allclose(measured[relevance][name], values, rtol=1e-12, err_msg=f"{relevance} {name}")


@pytest.mark.parametrize("are_items", [True, False])
@pytest.mark.parametrize("depth", [sum(ITEM_COUNTS), 7])
def test_a_list_of_labels_is_met_by_items_with_any_of_them(tmp_path: Path, depth: int, are_items: bool) -> None:
    known = [("x",), ("y", "x"), ("z",), ("z", "y", "w"), None]
    root, segments, labels = mixed_version(tmp_path, "ip", "Flat", known)
    asked = queries_of(12, labels, are_items=are_items, known=[("w", "x"), ("y",), ("nowhere", "z"), None])
    asked = Queries(**{**vars(asked), "new": np.round(asked.new), "old": np.round(asked.old)})
    search = GallerySearch(asked, "ip", depth)
    ranking = GalleryRanking(search)
    for segment in segments:
        ranking.add(search_one_segment(root.files, search, segment), segment.calibration)
    _, ids = open_index(str(tmp_path)).search(asked.new, search.num_hits, old_queries=asked.old)
    measured, expected = ranking.per_query()["label"], by_search(ids, asked, labels, depth)["label"]
    assert 0 < np.nanmean(measured["map"]) < 1
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, rtol=1e-12, err_msg=name)


def test_ndcg_of_grades_is_what_a_hand_says_over_two_segments() -> None:
    # The ranking is a, b, c, then x. Item c is judged twice, x ranks beyond the depth but is in the ideal ranking.
    judged = [Judgement(0, "a", 1), Judgement(0, "c", 2), Judgement(0, "c", 3), Judgement(0, "b", 0)]
    asked = queries(judged=(*judged, Judgement(0, "x", 2), Judgement(0, "elsewhere", 9), Judgement(1, "b", -1)))
    ranking = GalleryRanking(GallerySearch(asked, "ip", depth=3))
    ranking.add(hits_of(asked, SCORES, ROWS, pa.array(ITEMS), None), Calibration())
    scores, rows = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int64)
    ranking.add(hits_of(asked, scores, rows, pa.array(["x"]), None), Calibration())
    values = ranking.per_query()["qrels"]
    gain, ideal = 1 / np.log2(2) + 3 / np.log2(4), 3 / np.log2(2) + 2 / np.log2(3) + 1 / np.log2(4)
    assert values["ndcg@10"][0] == pytest.approx(gain / ideal)
    assert (gain, ideal) == (pytest.approx(2.5), pytest.approx(4.76186))
    assert values["map"][0] == pytest.approx((1 + 2 / 3) / 3)
    assert values["cmc@1"][0] == 1
    assert all(np.isnan(column[1]) for column in values.values()), "a grade of 0 or less is not relevant"


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_search_returns_the_merged_raw_hits(tmp_path: Path, metric: Metric, factory: str) -> None:
    root, segments, labels = mixed_version(tmp_path, metric, factory)
    asked = queries_of(12, labels, are_items=False)
    search = GallerySearch(asked, metric, depth=sum(ITEM_COUNTS))
    ranking = GalleryRanking(search)
    for segment in segments:
        ranking.add(search_one_segment(root.files, search, segment), segment.calibration)
    hits, _ = ranking._merger.best()
    scores, ids = open_index(str(tmp_path)).search(asked.new, search.depth, old_queries=asked.old)
    # Two searches: the same items, with scores that another batch or kernel may round another way.
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-6, atol=1e-6 * np.abs(scores).max())
    starts = np.cumsum((0, *ITEM_COUNTS))
    merged = starts[hits.segments] + hits.rows
    gaps = np.abs(np.diff(scores, axis=1)) > 1e-4
    alone = np.pad(gaps, ((0, 0), (1, 0)), constant_values=True) & np.pad(gaps, ((0, 0), (0, 1)), constant_values=True)
    np.testing.assert_array_equal(merged[alone], ids[alone])
    assert np.sort(merged, axis=1).tolist() == np.sort(ids, axis=1).tolist()


PLAIN, LISTS = ("x", "y", "z", None), (("x",), ("y", "x"), ("z",), ("z", "y", "w"), None)


def label_table(known: Sequence[Any], values: Sequence[int]) -> pa.Array:
    labels = [known[value] for value in values]
    return pa.array([list(label) if isinstance(label, tuple) else label for label in labels])


@pytest.mark.parametrize("known", [PLAIN, LISTS], ids=["labels", "lists"])
@pytest.mark.parametrize("are_items", [True, False])
@pytest.mark.parametrize("depth", [60, 7])
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_segment_with_hidden_rows_is_measured_like_one_built_without_them(
    tmp_path: Path, depth: int, are_items: bool, known: Sequence[Any], data: st.DataObject
) -> None:
    rows, count = 40, 12
    hidden = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1), label="hidden"))
    moved = data.draw(st.sets(st.sampled_from(hidden)), label="hidden here, live in the other segment")
    seed = data.draw(st.integers(0, 99), label="seed")
    rng = np.random.default_rng(seed)
    root = Root(tmp_path / uuid.uuid4().hex)
    items, numbers = vectors(rows + 10, DIM, seed), rng.integers(0, len(known), rows + 10)
    other = [*sorted(moved), *range(rows, rows + 10)]
    live = sorted(set(range(rows)) - set(hidden))

    def segment(ids: Sequence[int], calibration: Calibration | None = None) -> Segment:
        return root.segment(items[list(ids)], ids, calibration, label_table(known, numbers[list(ids)].tolist()))

    own = rng.choice(rows + 10, count, replace=False)
    judged = [Judgement(q, i, g) for q, i, g in rng.integers(0, (count, rows + 10, 4), (150, 3)).tolist()]
    labels = objects(*known)[numbers[own] if are_items else rng.integers(0, len(known), count)]
    asked = Queries(
        own.astype(object) if are_items else objects(*(f"q{i}" for i in range(count))),
        vectors(count, DIM, seed + 1), labels=labels, judged=tuple(judged), are_items=are_items,
        fingerprint="f",
    )  # fmt: skip
    search = GallerySearch(asked, "ip", depth, keep=True)
    calibration, last = Calibration(scale=2, offset=-1), segment(other)
    masked = root.hiding(segment(range(rows), calibration), hidden, deleted=hidden[::2])
    rebuilt = [segment(live, calibration)] if live else []

    def measured(*segments: Segment) -> PerRelevance:
        ranking = GalleryRanking(search)
        for each in segments:
            ranking.add(search_one_segment(root.files, search, each), each.calibration)
        return ranking.per_query()

    expected = measured(*rebuilt, last)
    for _ in range(2):  # searched, then from what is kept
        found = measured(masked, last)
        assert found.keys() == expected.keys() == {"label", "qrels"}
        for relevance, metrics in expected.items():
            for name, values in metrics.items():
                np.testing.assert_allclose(found[relevance][name], values, rtol=1e-12, err_msg=f"{relevance} {name}")
    # A whole version: what cannot be among the first ones is not looked for.
    plain = [each.model_copy(update={"calibration": Calibration()}) for each in (*rebuilt, last)]
    both = search_segments(InProcessEngine(), root.files, [masked, last], search, [True, False])
    for relevances, wanted in zip(both, (expected, measured(*plain)), strict=True):
        for relevance, metrics in wanted.items():
            for name, values in metrics.items():
                np.testing.assert_allclose(
                    relevances[relevance][name], values, rtol=1e-12, err_msg=f"{relevance} {name}"
                )


def test_a_version_searches_again_only_what_hidden_rows_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path)
    few = root.segment(np.eye(DIM, dtype=np.float32), range(DIM))
    best = root.segment(np.eye(DIM, dtype=np.float32).repeat(6, axis=0) * 9, range(100, 100 + 6 * DIM))
    asked = Queries(
        objects("a", "b"), np.eye(DIM, dtype=np.float32)[:2] + 0.1, labels=objects("x", "y"), fingerprint="f"
    )
    search = GallerySearch(asked, "ip", 5, keep=True)
    searched: list[tuple[int, list[str]]] = []
    search_segment = evaluate._search_segment

    def counted(files: Files, this: GallerySearch, segment: Segment, *rest: Any) -> SegmentHits:
        searched.append((segment.rows, this.queries.ids.tolist()))
        return search_segment(files, this, segment, *rest)

    monkeypatch.setattr(evaluate, "_search_segment", counted)
    for _ in range(2):
        search_segments(InProcessEngine(), root.files, [root.hiding(few, [0, 1, 2]), best], search, [True, False])
    assert searched == [(DIM, ["a", "b"]), (6 * DIM, ["a", "b"])], "the others are better than all that it has left"
    searched.clear()
    search_segments(InProcessEngine(), root.files, [few, root.hiding(best, [0, 1, 2])], search, [True, False])
    assert searched == [(6 * DIM, ["a"])], "of the six best of one query three are hidden"


def test_only_queries_that_lose_hits_of_a_cut_list_are_searched_again_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path)
    plain = root.segment(vectors(50, DIM), range(50))
    asked = Queries(objects(*"abcdef"), vectors(6, DIM, 1), fingerprint="f")
    search = GallerySearch(asked, "ip", 5, keep=True)
    raw = search_one_segment(root.files, search, plain)
    worst = int(raw.rows[2, 0])
    searched: list[list[str]] = []
    search_segment = evaluate._search_segment
    monkeypatch.setattr(
        evaluate,
        "_search_segment",
        lambda files, this, *rest: searched.append(this.queries.ids.tolist()) or search_segment(files, this, *rest),
    )
    masked = root.hiding(plain, [worst])
    for _ in range(2):
        hits = search_one_segment(root.files, search, masked)
        assert worst not in hits.rows
        assert (hits.rows >= 0).all()
    losing = [name for name, rows in zip("abcdef", raw.rows, strict=True) if worst in rows]
    assert 0 < len(losing) < 6
    assert searched == [losing]
    more = root.hiding(plain, [worst, next(row for row in range(50) if row not in raw.rows and row > worst)])
    search_one_segment(root.files, search, more)
    assert searched == [losing, losing], "another deletion vector"
    complete = GallerySearch(asked, "ip", 50)
    searched.clear()
    assert search_one_segment(root.files, complete, more).rows.shape == (6, 48)
    assert searched == [list("abcdef")], "the raw hits alone"
