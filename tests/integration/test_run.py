"""A whole run on either engine: what it commits, how it resumes, what it does with bad rows."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastfill_ray as ff
from fastfill_ray.cli import main
from fastfill_ray.errors import EmbedderError, SpaceMismatch
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Version
from fastfill_ray.retrieval.metrics import per_query
from fastfill_ray.retrieval.ranking import rank_hits
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.conftest import ABSENT, OTHERS, Run, Workshop, in_process, mostly_in_process
from tests.segments import segments_in
from tests.synthetic import marker, new_vectors, receipt_at


def value(version: Version, relevance: str, metric: str, scope: str = "gallery") -> float:
    return next(
        m.value
        for m in version.metrics
        if (m.scope, m.relevance, m.metric, m.calibrated) == (scope, relevance, metric, True)
    )


def queries_of(workshop: Workshop) -> np.ndarray:
    import pyarrow.parquet as pq

    return np.array(pq.read_table(workshop.folder / "queries" / "queries.parquet").column("x").to_pylist(), np.float32)


@pytest.fixture(scope="module")
def finished(planned: Path, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A finished run in three calls, with the pool changed in between."""
    target = tmp_path_factory.mktemp("finished") / "root"
    shutil.copytree(planned, target)
    journal = tmp_path_factory.mktemp("journal")
    workshop.control(journal=str(journal))
    first = run(workshop.config(target), until="version0")
    assert [v.wave for v in first.state.versions] == [0]
    assert not workshop.journal(journal), "version 0 needs no more embedding than the pairs"
    log = io.StringIO()
    more = {"resources": {"embed_actors": [1, 2], "chunk_rows": 37, "price_per_actor_hour": 2}}
    second = run(workshop.config(target, **more), until="wave:1", stream=log)
    assert [v.wave for v in second.state.versions] == [0, 1]
    third = run(workshop.config(target))
    assert third.finished
    workshop.control()
    counts = Counter(workshop.journal(journal))
    assert set(counts.values()) == {1}, "an item was embedded twice"
    assert len(counts) == 600 - 120, "every item but the pairs is embedded after PLAN"
    assert "waves: 20 % of the items embedded, loading " in log.getvalue()
    assert "wave 1 of 3: 30 % of the items embedded, " in log.getvalue()
    assert re.search(r"actor hours for a million items: [0-9.,]+ at 2 an hour\n", log.getvalue())
    assert second.price_per_actor_hour == 2
    return target


def test_a_run_that_stops_at_the_plan_has_written_the_report_and_status_prints_the_plan(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (planned / "reports" / "report.html").exists()
    assert main(["status", str(planned)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Make version 0 and decide then: ")
    assert "\nPlan " in printed
    assert "Predicted " in printed
    assert re.search(r"To embed: 480 items at \S+ s each, as measured at the pairs", printed.replace("\n", " "))


def test_every_version_holds_every_id_exactly_once(finished: Path, workshop: Workshop) -> None:
    files = open_files(str(finished))
    versions = read_state(files).versions
    assert [v.wave for v in versions] == [0, 1, 2, 3]
    assert [(v.rows, v.absent) for v in versions] == [(598, 2), (600, 0), (600, 0), (600, 0)]
    assert [v.new_rows for v in versions] == [120, 180, 360, 600]
    assert [v.version for v in verify(files)] == [0, 1, 2, 3]
    for version in versions:
        index = ff.open_index(str(finished), version.version)
        _, ids = index.search(new_vectors(queries_of(workshop)[:1]), k=600)
        found = [item for item in ids[0].tolist() if item != -1]
        assert len(set(found)) == len(found) == version.rows
        missing = set(workshop.ids.tolist()) - set(found)
        assert missing == ({workshop.ids[row] for row in ABSENT} if version.version == 0 else set())


def test_the_last_versions_metrics_equal_a_plain_numpy_search(finished: Path, workshop: Workshop) -> None:
    last = read_state(open_files(str(finished))).versions[-1]
    items, queries = new_vectors(workshop.x), new_vectors(queries_of(workshop))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores = queries @ items.T
    same = workshop.classes[workshop.asked][:, None] == workshop.classes[None, :]
    own = np.arange(600)[None, :] == workshop.asked[:, None]
    for relevance, relevant in (("label", same), ("qrels", own)):
        plain = per_query(rank_hits(scores, relevant), relevant.sum(axis=1))
        for metric in ("cmc@1", "map", "recall@1", "recall@10"):
            assert value(last, relevance, metric) == pytest.approx(plain[metric].mean(), abs=1e-6)


def test_any_version_is_searched_as_brute_force_over_its_vectors(finished: Path, workshop: Workshop) -> None:
    index = ff.open_index(str(finished))
    assert index.version == read_state(open_files(str(finished))).serving
    queries = new_vectors(queries_of(workshop))
    scores, ids = ff.open_index(str(finished), 3).search(queries, k=5)
    items = new_vectors(workshop.x)
    plain = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        items / np.linalg.norm(items, axis=1, keepdims=True)
    ).T
    order = np.argsort(-plain, axis=1)[:, :5]
    assert (ids == workshop.ids[order]).all()
    assert scores == pytest.approx(np.take_along_axis(plain, order, axis=1), abs=1e-5)


def test_quality_rises_and_every_scope_is_reported(finished: Path) -> None:
    state = read_state(open_files(str(finished)))
    first, last = state.versions[0], state.versions[-1]
    assert value(last, "label", "map") > value(first, "label", "map")
    reported = {(m.scope, m.relevance, m.calibrated) for m in first.metrics}
    assert reported == {
        (scope, relevance, calibrated)
        for scope, relevance in [
            ("audit", "label"),
            ("audit", "qrels"),
            ("audit", "new_model"),
            ("gallery", "label"),
            ("gallery", "qrels"),
        ]
        for calibrated in (True, False)
    }
    assert state.plan is not None
    arms = {name: {(m.scope, m.relevance) for m in values} for name, values in state.plan.baselines.items()}
    assert ("gallery", "label") in arms["old/old"]
    assert ("audit", "new_model") in arms["new/new"]


def test_the_report_lies_beside_the_log(finished: Path) -> None:
    page = (finished / "reports" / "report.html").read_text()
    assert "<svg" in page
    assert (finished / "reports" / "metrics.json").stat().st_size > 0


def test_the_same_call_after_the_end_does_nothing(finished: Path, workshop: Workshop, tmp_path: Path, run: Run) -> None:
    workshop.control(journal=str(tmp_path), fault="shape")
    before = sorted(finished.rglob("*"))
    result = run(workshop.config(finished))
    assert result.finished
    assert result.seconds == {}
    assert sorted(finished.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@mostly_in_process
def test_other_settings_in_the_middle_of_a_plan_get_a_plan_of_their_own_that_embeds_nothing_twice(
    root: Callable[[], Path], workshop: Workshop, tmp_path: Path, run: Run
) -> None:
    target = root()
    run(workshop.config(target), until="wave:1")
    journal = tmp_path / "journal"
    journal.mkdir()
    workshop.control(journal=str(journal))
    result = run(workshop.config(target, waves=[0.45, 1.0]))
    workshop.control()
    assert [(v.wave, v.cause) for v in result.state.plan_versions] == [(0, "wave"), (1, "wave"), (2, "wave")]
    assert result.state.plan_versions[0].new_rows == 180, "what was new stays new"
    assert len(workshop.journal(journal)) == 600 - 180


@mostly_in_process
def test_a_finished_root_refuses_another_model(finished: Path, workshop: Workshop, run: Run) -> None:
    other = {"new_model": {"kwargs": {"control": "elsewhere.json"}}}
    with pytest.raises(SpaceMismatch, match="new_space"):
        run(workshop.config(finished, **other))


@mostly_in_process
def test_other_queries_on_a_finished_root_are_one_more_version_held_against_what_is_served(
    finished: Path, workshop: Workshop, tmp_path: Path, run: Run
) -> None:
    target = tmp_path / "root"
    shutil.copytree(finished, target)
    journal = tmp_path / "journal"
    journal.mkdir()
    workshop.control(journal=str(journal))
    # Other queries (no labels) and another objective: what is served has to be measured again to be compared.
    other = workshop.config(target, objective={"relevance": "qrels", "metric": "recall@10"}, waves=[0.5, 1.0])
    del other["queries"]["label_column"]
    result = run(other)
    workshop.control()
    [version] = result.state.plan_versions
    assert (version.version, version.new_rows, version.final) == (4, 600, True)
    assert "against version 3" in version.verdict.reason
    assert version.verdict.difference == 0, "all new like version 3 it is neither better nor worse"
    assert result.serving == 4
    assert result.exit_code == 0
    assert workshop.journal(journal) == [], "all are known, nothing is embedded again"


@mostly_in_process
def test_a_gallery_file_that_was_only_touched_after_planning_is_adopted(
    root: Callable[[], Path], workshop: Workshop, run: Run
) -> None:
    target = root()
    shard = workshop.folder / "gallery" / "part-001.parquet"
    times = shard.stat()
    try:
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000_000))
        result = run(workshop.config(target), until="version0")
    finally:
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(result.state.plans) == 2
    assert result.state.plan_versions[0].rows == 600 - len(ABSENT)


def test_bad_rows_are_quarantined_and_stay_stale(root: Callable[[], Path], workshop: Workshop, run: Run) -> None:
    target = root()
    rows = [int(row) for row in OTHERS if row not in ABSENT][:4]
    absent_for_ever = ABSENT[0]
    kinds = ["raise", "nan", "raise", "nan"]
    workshop.control(
        bad={
            marker(workshop.x[row, 0]): kind
            for row, kind in zip([*rows, absent_for_ever], [*kinds, "raise"], strict=True)
        }
    )
    result = run(workshop.config(target))
    last = result.state.versions[-1]
    assert result.finished
    assert (last.rows, last.new_rows, last.quarantined, last.absent) == (599, 595, 5, 1)
    stale = [segment for segment in segments_in(target, last) if segment.state == "stale"]
    assert sum(segment.rows for segment in stale) == 4
    receipts = [
        fault for path in (target / "vectors").rglob("*.receipt.json") for fault in receipt_at(path).quarantined
    ]
    reasons = {fault.id: fault.reason for fault in receipts}
    assert set(reasons) == {int(workshop.ids[row]) for row in [*rows, absent_for_ever]}
    assert "this row cannot be read" in reasons[int(workshop.ids[rows[0]])]
    assert reasons[int(workshop.ids[rows[1]])] == "non_finite"
    _, ids = ff.open_index(str(target), last.version).search(queries_of_items(workshop, rows), k=600)
    assert set(workshop.ids[rows].tolist()) <= set(ids[0].tolist())
    verify(open_files(str(target)))


def queries_of_items(workshop: Workshop, rows: list[int]) -> np.ndarray:
    return new_vectors(workshop.x[rows])


@mostly_in_process
def test_a_wave_above_the_quarantine_limit_fails_before_its_commit(
    root: Callable[[], Path], workshop: Workshop, run: Run
) -> None:
    target = root()
    run(workshop.config(target), until="version0")
    for fault in ("shape", "count"):
        workshop.control(fault=fault)
        with pytest.raises(EmbedderError, match=r"wave 1: none of the \d+ rows .* embedded: wrong_shape: .*config is"):
            run(workshop.config(target))
        assert [v.wave for v in read_state(open_files(str(target))).versions] == [0]
    workshop.control()
    result = run(workshop.config(target), until="wave:1")
    assert result.state.versions[-1].quarantined == 0


@mostly_in_process
def test_strings_l2_ivf_and_no_queries(tmp_path: Path, run: Run) -> None:
    """The other half of the options in one run: string ids, l2, an IVF index, audit items as queries, no labels."""
    ids, x, _ = synthetic.write_gallery(tmp_path / "gallery", ids="string")
    config = synthetic.config(
        tmp_path,
        new_model={"metric": "l2"},
        gallery={"label_column": None},
        objective={"relevance": "new_model", "metric": "recall@10"},
        index={"factory": "IVF4,Flat", "segment_rows": 250},
        alignment={"method": "procrustes"},
        policy={"name": "random"},
        waves=[0.3, 0.8],
    )
    result = run(config)
    assert result.finished
    last = result.state.versions[-1]
    assert last.fraction == 0.8
    assert {segment.bucket for segment in segments_in(tmp_path / "out", last)} == {0, 1, 2}
    assert {m.scope for m in last.metrics} == {"audit"}
    index = ff.open_index(str(tmp_path / "out"), last.version)
    items = new_vectors(x)
    scores, found = index.search(items[:20], k=3, nprobe=4)
    assert found.dtype == object
    hits = sum(found[row, 0] == ids[row] for row in range(20))
    assert hits >= 16, "an item that is new is its own nearest neighbour"
    assert (scores <= 1e-3).all()


@mostly_in_process
def test_the_hook_is_told_of_every_published_version_and_what_it_missed_at_the_next_start(
    root: Callable[[], Path], workshop: Workshop, tmp_path: Path
) -> None:
    output, calls = root(), tmp_path / "calls"
    script = tmp_path / "hook.sh"
    script.write_text(f'#!/bin/sh\ntest -e {tmp_path}/up || exit 3\necho "$FASTFILL_VERSION" >> {calls}\n')
    script.chmod(0o755)
    config = workshop.config(output, serving={"max_regression": 1.0, "on_publish": [str(script)]})
    stream = io.StringIO()
    assert in_process(config, until="version0", stream=stream).state.serving == 0
    assert "ended with code 3" in stream.getvalue()
    (tmp_path / "up").touch()
    in_process(config, until="version0")
    assert calls.read_text().split() == ["0"]
    result = in_process(config)
    assert calls.read_text().split() == [str(number) for number in result.state.published]
