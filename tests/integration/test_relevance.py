"""What is relevant in a whole run: lists of labels, and graded judgements, against plain loops over all items."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.log.records import MetricValue
from fastfill_ray.retrieval.metrics import per_query
from fastfill_ray.retrieval.ranking import rank_hits
from tests import synthetic
from tests.integration.conftest import in_process

ROWS = 400
Change = Callable[[pa.Table], pa.Table]


def rewrite(path: Path, change: Change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def tags_of(number: int, classes: int) -> list[str | None] | None:
    """The class and the row's last digit as tags; every tenth row has none, in two ways."""
    if number % 10 == 0:
        return None if number % 20 else [None]
    return [f"class-{classes}", f"digit-{number % 10}", f"class-{classes}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("relevance")


@pytest.fixture(scope="module")
def world(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ids, scores (Q, N) of the new model, classes, and which item each query is a copy of; `tags` are added."""
    ids, x, classes = synthetic.write_gallery(folder / "gallery", rows=ROWS)
    asked = synthetic.write_queries(folder / "queries", ids, x, classes)
    start = 0
    for path in sorted((folder / "gallery").iterdir()):
        rows = range(start, start := start + pq.read_metadata(path).num_rows)
        tags = pa.array([tags_of(row, classes[row]) for row in rows], pa.large_list(pa.string()))
        rewrite(path, lambda table, tags=tags: table.append_column("tags", tags))  # type: ignore[misc]
    labels = pa.array([[f"class-{classes[row]}", "digit-3"] if row % 7 else [] for row in asked.tolist()])
    encoded = labels.cast(pa.list_(pa.string()))
    rewrite(folder / "queries" / "queries.parquet", lambda table: table.append_column("tags", encoded))
    queries = np.array(pq.read_table(folder / "queries" / "queries.parquet").column("x").to_pylist(), np.float32)
    unit = [
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in map(synthetic.new_vectors, (queries, x))
    ]
    return ids, unit[0] @ unit[1].T, classes, asked


def config(folder: Path, output: Path, **sections: Any) -> dict[str, Any]:
    given = synthetic.with_queries(folder)
    for name in ("queries", "gallery"):
        sections[name] = {**given.get(name, {}), **sections.get(name, {})}
    return synthetic.config(folder, output=str(output), pairs={"count": 110}, **{**given, **sections})


def metric(values: tuple[MetricValue, ...], scope: str, relevance: str, name: str) -> MetricValue:
    return next(
        value
        for value in values
        if (value.scope, value.relevance, value.metric, value.calibrated, value.group)
        == (scope, relevance, name, True, None)
    )


def test_lists_of_labels_count_items_that_share_one_and_teach_no_class(
    folder: Path, world: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    _, scores, classes, asked = world
    result = in_process(
        config(
            folder,
            tmp_path / "out",
            gallery={"label_column": "tags"},
            queries={"label_column": "tags"},
            policy={"name": "auto"},
            waves=[0.3, 1.0],
        )
    )
    wanted = [{f"class-{classes[row]}", "digit-3"} if row % 7 else set() for row in asked.tolist()]
    tags = [set(tags_of(row, classes[row]) or ()) - {None} for row in range(ROWS)]
    relevant = np.array([[bool(query & item) for item in tags] for query in wanted])
    assert relevant.any(axis=1).sum() == sum(row % 7 != 0 for row in asked.tolist()) < len(asked)
    last, plan = result.state.versions[-1], result.state.plan
    assert plan is not None
    assert last.fraction == 1
    audit = synthetic.drawn_pairs(synthetic.item_ids(ROWS), 110)["audit"]
    for values, scope, rows in (
        (last.metrics, "gallery", np.arange(ROWS)),
        (plan.baselines["new/new"], "audit", audit),
    ):
        there = relevant[:, rows]
        plain = per_query(rank_hits(scores[:, rows], there), there.sum(axis=1))
        for name in ("cmc@1", "map", "recall@10", "ndcg@10"):
            found = metric(values, scope, "label", name)
            assert found.value == pytest.approx(np.nanmean(plain[name]), abs=1e-6), (scope, name)
            assert found.queries == np.isfinite(plain[name]).sum()
    old = metric(plan.baselines["old/old"], "gallery", "label", "map")
    assert 0 < old.value < metric(last.metrics, "gallery", "label", "map").value
    [choice] = (tmp_path / "out").rglob("choice*.json")
    words = set(re.findall(r"\w+", choice.read_text()))
    assert "uncertainty" in words
    assert not {"class_margin", "class_loss", "entropy"} & words


def test_items_that_ask_are_not_their_own_answer_by_a_list(
    folder: Path, world: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    """Audit items as queries, in both the shadow and the index: their lists come back from the stored pairs."""
    _, _, classes, _ = world
    given = synthetic.config(
        folder,
        output=str(tmp_path / "out"),
        gallery={"label_column": "tags"},
        pairs={"count": 110},
        waves=[1.0],
    )
    result = in_process(given)
    audit = synthetic.drawn_pairs(synthetic.item_ids(ROWS), 110)["audit"]
    tags = [set(tags_of(row, classes[row]) or ()) - {None} for row in range(ROWS)]
    last = result.state.versions[-1]
    for scope, rows in (("gallery", range(ROWS)), ("audit", audit.tolist())):
        answered = sum(any(tags[query] & tags[item] for item in rows if item != query) for query in audit.tolist())
        assert metric(last.metrics, scope, "label", "map").queries == answered
        assert answered < len(audit)


def test_graded_judgements_decide_by_their_grade_and_zero_is_not_relevant(
    folder: Path, world: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    ids, scores, _, asked = world
    rng = np.random.default_rng(3)
    rows = [
        (query, int(item), int(grade))
        for query in range(len(asked))
        for item, grade in zip(rng.choice(ROWS, 14, replace=False), rng.integers(0, 4, 14), strict=True)
    ]
    rows += [(query, int(item), 3) for query, item in enumerate(asked)]  # its own, maybe judged before
    rows += [(0, item, 0) for item in range(ROWS)]  # nothing of this counts
    rows = [row for row in rows if row[0] != 5] + [(5, 0, 0)]  # query 5 has no relevant item
    grades: dict[int, dict[int, int]] = {}
    for query, item, grade in rows:
        mine = grades.setdefault(query, {})
        mine[item] = max(grade, mine.get(item, 0))
    table = pa.table(
        {
            "query_id": [f"q{query}" for query, _, _ in rows],
            "item_id": pa.array([int(ids[item]) for _, item, _ in rows], pa.uint64()).dictionary_encode(),
            "relevance": pa.array([grade for _, _, grade in rows], pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "qrels.parquet")
    result = in_process(
        config(
            folder,
            tmp_path / "out",
            queries={"qrels_path": str(tmp_path / "qrels.parquet")},
            objective={"relevance": "qrels", "metric": "ndcg@10"},
            waves=[1.0],
        )
    )
    order, plain = np.argsort(-scores, axis=1), {"ndcg@10": [], "cmc@1": [], "recall@10": []}  # type: ignore[var-annotated]
    for query in range(len(asked)):
        found = [grades[query].get(item, 0) for item in order[query].tolist()]
        ideal = sorted(grades[query].values(), reverse=True)
        if not any(ideal):
            continue
        gains = [sum(grade / math.log2(place + 2) for place, grade in enumerate(line[:10])) for line in (found, ideal)]
        plain["ndcg@10"].append(gains[0] / gains[1])
        plain["cmc@1"].append(found[0] > 0)
        plain["recall@10"].append(sum(grade > 0 for grade in found[:10]) / sum(grade > 0 for grade in ideal))
    last = result.state.versions[-1]
    for name, values in plain.items():
        measured = metric(last.metrics, "gallery", "qrels", name)
        assert measured.value == pytest.approx(np.mean(values), abs=1e-6)
        assert measured.queries == len(asked) - 1
    assert 0 < np.mean(plain["ndcg@10"]) < 1


def spoilt(folder: Path, target: Path, column: pa.Array | None) -> str:
    """The gallery with another column `tags`."""
    target.mkdir()
    for path in (folder / "gallery").iterdir():
        table = pq.read_table(path)
        if column is not None:
            table = table.set_column(table.column_names.index("tags"), "tags", column[: table.num_rows])
        pq.write_table(table, target / path.name)
    return str(target)


@pytest.mark.parametrize(
    ("sections", "column", "error", "message"),
    [
        (
            {"policy": {"name": "class_margin"}},
            None,
            ConfigError,
            r"policy\.name 'class_margin' needs one class .* lists",
        ),
        ({"policy": {"name": "class_loss"}}, None, ConfigError, r"policy\.name 'class_loss' needs one class .* lists"),
        ({"policy": {"name": "entropy"}}, None, ConfigError, r"policy\.name 'entropy' needs one class .* are lists"),
        (
            {"new_model": {"classifier": "head.npz"}},
            None,
            ConfigError,
            r"new_model\.classifier needs one .* lists",
        ),
        (
            {},
            pa.array([0] * ROWS, pa.timestamp("us")),
            InputError,
            r"part-000\.parquet: column 'tags' \(gallery\.label_column\): timestamp\[us\] cannot be a label: .* Cast",
        ),
        (
            {"queries": {"label_column": "number"}},
            None,
            ConfigError,
            r"column 'number' is integer, but gallery\.label_column 'tags' is list of text; they must be of one kind",
        ),
    ],
)
def test_labels_that_cannot_do_what_is_asked_are_refused_before_anything_starts(
    folder: Path,
    world: tuple[np.ndarray, ...],
    tmp_path: Path,
    sections: dict[str, Any],
    column: pa.Array | None,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("head.npz", weight=np.zeros((6, synthetic.NEW_DIM), np.float32), bias=np.zeros(6, np.float32))
    sections = {"queries": {"label_column": "tags"}, **sections}
    gallery = {"label_column": "tags", "path": spoilt(folder, tmp_path / "gallery", column)}
    with pytest.raises(error, match=message):
        in_process(config(folder, tmp_path / "out", gallery=gallery, **sections))
    assert not (tmp_path / "out").exists()


def test_one_label_in_two_encodings_is_one_label(folder: Path, world: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    """A categorical in the gallery, large strings in the queries: the metrics are those of plain strings."""

    def encoded(table: pa.Table, column: pa.ChunkedArray) -> pa.Table:
        return table.set_column(table.column_names.index("label"), "label", column)

    results: list[ff.BackfillResult] = []
    for name in ("plain", "encoded"):
        spoilt(folder, tmp_path / name, None)
        queries = tmp_path / f"{name}.parquet"
        table = pq.read_table(folder / "queries" / "queries.parquet")
        if name == "encoded":
            for path in (tmp_path / name).iterdir():
                rewrite(path, lambda shard: encoded(shard, shard.column("label").dictionary_encode()))
            table = encoded(table, table.column("label").cast(pa.large_string()))
        pq.write_table(table, queries)
        given = {"gallery": {"path": str(tmp_path / name)}, "queries": {"path": str(queries)}}
        results.append(in_process(config(folder, tmp_path / f"out-{name}", waves=[1.0], **given)))
    plain, other = (result.state.versions[-1].metrics for result in results)
    assert plain == other
    assert metric(plain, "gallery", "label", "map").value > 0.3


@pytest.mark.parametrize("before", [None, "group"], ids=["no labels", "another column"])
def test_a_version_that_holds_no_such_labels_is_not_measured_by_them(
    folder: Path, world: Any, tmp_path: Path, before: str | None
) -> None:
    """The gate cannot hold a version against one whose segments hold other labels: it says so and publishes."""
    first = config(folder, tmp_path / "out", waves=[1.0], objective={"relevance": "new_model"})
    first["gallery"]["label_column"] = before
    first["queries"]["label_column"] = None
    assert in_process(first).finished
    second = config(folder, tmp_path / "out", waves=[1.0], objective={"relevance": "label"})
    result = in_process(second)
    assert result.finished
    verdict = result.state.plan_versions[0].verdict
    assert verdict.publish
    assert "is not known, nothing to compare with" in verdict.reason
    assert any(value.scope == "gallery" for value in result.state.plan_versions[0].metrics), "it has the labels"
