"""A run in stale mode fused: what its versions hold, what they need, and how they are compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Segment, Version
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.retrieval.metrics import per_query
from fastfill_ray.retrieval.ranking import rank_hits
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.stages import choose
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.conftest import ABSENT, PAIRS, Workshop, in_process
from tests.integration.test_run import queries_of, value
from tests.segments import segments_in
from tests.synthetic import OLD_DIM, marker, new_vectors, old_vectors

HALF = Fusion(old=0.5**0.5, new=0.5**0.5)


def vectors_of(root: Path, segment: Segment) -> dict[int, np.ndarray]:
    """{id: vector} of a Flat segment."""
    index = faiss.read_index(str(root / segment.index.path))
    ids = pq.read_table(root / segment.ids.path).column("id").to_pylist()
    return dict(zip(ids, index.reconstruct_n(0, index.ntotal), strict=True))


def stale_segments(root: Path, version: Version) -> list[Segment]:
    return [segment for segment in segments_in(root, version) if segment.state == "stale"]


def all_stale(root: Path, version: Version) -> dict[int, np.ndarray]:
    return {k: v for segment in stale_segments(root, version) for k, v in vectors_of(root, segment).items()}


def version_of(root: Path, number: int) -> Version:
    version = read_state(open_files(str(root))).version(number)
    assert version is not None
    return version


@pytest.fixture(scope="module", autouse=True)
def one_weight() -> Iterator[None]:
    """The laboratory would measure the weight; here it is given, so that figures can be written down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "WEIGHTS", (1.0, 0.5))
        yield


def fused_config(workshop: Workshop, root: Path, **sections: Any) -> dict[str, Any]:
    return workshop.config(root, serving={"stale_mode": "fused"}, **sections)


@pytest.fixture(scope="module")
def half_done(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 0 and 1; most items stay stale, and two of wave 1 because they cannot be embedded."""
    root = tmp_path_factory.mktemp("fused") / "root"
    workshop.control()
    config = fused_config(workshop, root, waves=[0.3])
    first = in_process(config, until="version0").state.versions[0]
    in_wave_1 = [
        item for segment in stale_segments(root, first) if segment.wave == 1 for item in vectors_of(root, segment)
    ]
    rows = [workshop.ids.tolist().index(item) for item in in_wave_1[:2]]
    workshop.control(bad={marker(workshop.x[row, 0]): "raise" for row in rows})
    result = in_process(config)
    workshop.control()
    assert result.finished
    assert result.state.versions[-1].quarantined == 2
    return root


@pytest.fixture(scope="module")
def without_old_queries(half_done: Path, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that goes on with a plan in mode aligned, whose queries have no old vectors: version 2 is its first."""
    root = tmp_path_factory.mktemp("aligned") / "root"
    shutil.copytree(half_done, root)
    config = workshop.config(root)
    del config["old_model"]
    in_process(config, until="version0")
    return root


@pytest.fixture(scope="module")
def all_aligned(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    """The aligned vectors of the items that are no pairs, as a root in mode aligned holds them."""
    root = tmp_path_factory.mktemp("all-aligned") / "root"
    config = workshop.config(root)
    del config["old_model"]
    return all_stale(root, in_process(config, until="version0").state.versions[0])


def test_stale_segments_hold_the_old_vector_and_the_aligned_one(
    half_done: Path, all_aligned: dict[int, np.ndarray], without_old_queries: Path, workshop: Workshop
) -> None:
    state = read_state(open_files(str(half_done)))
    assert state.plan is not None
    assert (state.plan.stale_mode, state.plan.fusion) == ("fused", HALF)
    old = dict(zip(workshop.ids.tolist(), unit_rows(old_vectors(workshop.x)), strict=True))
    fused = all_stale(half_done, state.versions[0])
    assert set(fused) == set(all_aligned) == set(workshop.ids.tolist()) - set(workshop.ids[[*PAIRS, *ABSENT]].tolist())
    follower = all_stale(without_old_queries, version_of(without_old_queries, 2))
    assert set(follower) == set(all_stale(half_done, state.versions[1])), "what was new stays new in another plan"
    for item, vector in fused.items():
        np.testing.assert_allclose(vector[:OLD_DIM], HALF.old * old[item], atol=1e-5)
        np.testing.assert_allclose(vector[OLD_DIM:], HALF.new * all_aligned[item], atol=1e-5)
    for version in state.versions:
        for segment in segments_in(half_done, version):
            assert (segment.space, segment.fusion) == (("new", None) if segment.state == "new" else ("fused", HALF))
    residual = [segment for segment in stale_segments(half_done, state.versions[1]) if segment.wave == 1]
    assert sum(segment.rows for segment in residual) == 2
    assert [v.version for v in verify(open_files(str(half_done)))] == [0, 1]


def test_version_0_is_searched_as_brute_force_over_fused_and_new_vectors(
    half_done: Path, all_aligned: dict[int, np.ndarray], workshop: Workshop
) -> None:
    index, version = ff.open_index(str(half_done), 0), version_of(half_done, 0)
    queries, old_queries = new_vectors(queries_of(workshop)), old_vectors(queries_of(workshop))
    assert index.needs_old_queries is True
    with pytest.raises(ValueError, match="version 0 is fused"):
        index.search(queries)
    column = {item: number for number, item in enumerate(workshop.ids.tolist())}
    expected = np.full((len(queries), 600), -np.inf, np.float32)
    of_old = unit_rows(old_queries) @ unit_rows(old_vectors(workshop.x)).T
    served = {
        item: segment.calibration
        for segment in stale_segments(half_done, version)
        for item in vectors_of(half_done, segment)
    }
    for item, vector in all_aligned.items():
        calibration = served[item]
        score = 0.5 * of_old[:, column[item]] + 0.5 * unit_rows(queries) @ vector
        expected[:, column[item]] = calibration.scale * score + calibration.offset
    new = [item for s in segments_in(half_done, version) if s.state == "new" for item in vectors_of(half_done, s)]
    for item in new:
        expected[:, column[item]] = unit_rows(queries) @ unit_rows(new_vectors(workshop.x[[column[item]]]))[0]
    scores, ids = index.search(queries, 600, old_queries=old_queries)
    found = np.full_like(expected, -np.inf)
    for row, (line, items) in enumerate(zip(scores, ids.tolist(), strict=True)):
        for score, item in zip(line, items, strict=True):
            if item != -1:
                found[row, column[item]] = score
    assert np.isfinite(found).sum() == 598 * len(queries)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    # The run has measured what a reader finds.
    relevances = {
        "label": workshop.classes[workshop.asked][:, None] == workshop.classes[None, :],
        "qrels": np.arange(600)[None, :] == workshop.asked[:, None],
    }
    for relevance, relevant in relevances.items():
        there = relevant & np.isfinite(found)
        plain = per_query(rank_hits(found, there), there.sum(axis=1))
        for metric in ("cmc@1", "map", "recall@1", "recall@10"):
            assert value(version, relevance, metric) == pytest.approx(np.nanmean(plain[metric]), abs=1e-6)


def test_a_fused_version_that_is_served_is_measured_again_with_another_plans_queries(
    half_done: Path, workshop: Workshop, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(half_done, root)
    reader = ff.open_index(str(root))
    assert reader.needs_old_queries is True
    served = reader.version
    other = fused_config(workshop, root, objective={"relevance": "qrels", "metric": "recall@10"}, waves=[1.0])
    del other["queries"]["label_column"]
    result = in_process(other)
    first, last = result.state.plan_versions
    assert f"against version {served}" in first.verdict.reason
    assert first.verdict.difference is not None
    assert last.verdict.publish
    # After the last wave nothing is fused any more, and a reader follows.
    assert reader.refresh() is True
    assert (reader.version, reader.needs_old_queries) == (last.version, False)
    queries = new_vectors(queries_of(workshop))
    plain = unit_rows(queries) @ unit_rows(new_vectors(workshop.x)).T
    assert (reader.search(queries, 5)[1] == workshop.ids[np.argsort(-plain, axis=1)[:, :5]]).all()


def test_without_old_query_vectors_a_fused_version_cannot_be_compared_with(without_old_queries: Path) -> None:
    verdict = version_of(without_old_queries, 2).verdict
    assert verdict.publish
    assert verdict.difference is None
    assert "is not known, nothing to compare with" in verdict.reason


def test_l2_an_ivf_index_and_the_audit_items_as_queries(tmp_path: Path) -> None:
    """The other half of the options: nothing of the old model is needed, for audit items have old vectors."""
    ids, x, _ = synthetic.write_gallery(tmp_path / "gallery")
    config = synthetic.config(
        tmp_path,
        new_model={"metric": "l2"},
        objective={"relevance": "new_model", "metric": "recall@10"},
        index={"factory": "IVF4,Flat"},
        serving={"stale_mode": "fused"},
        waves=[0.3],
    )
    state = in_process(config, until="version0").state
    [version] = state.versions
    assert {segment.dim for segment in stale_segments(tmp_path / "out", version)} == {OLD_DIM + synthetic.NEW_DIM}
    assert {m.scope for m in version.metrics} == {"audit", "gallery"}
    assert [(v.version, v.rows) for v in verify(open_files(str(tmp_path / "out")))] == [(0, 600)]
    index = ff.open_index(str(tmp_path / "out"), 0)
    scores, found = index.search(new_vectors(x), k=600, old_queries=old_vectors(x), nprobe=4)
    assert (np.sort(found, axis=1) == np.sort(ids)).all()
    # An item that asks is as far from itself as its aligned vector is from its new one, by half.
    own = np.take_along_axis(scores, np.argmax(found == ids[:, None], axis=1)[:, None], axis=1)[:, 0]
    for segment in stale_segments(tmp_path / "out", version):
        calibration = segment.calibration
        data = faiss.read_index(str(tmp_path / "out" / segment.index.path))
        data.make_direct_map()
        named = pq.read_table(tmp_path / "out" / segment.ids.path).column("id").to_pylist()
        for item, vector in zip(named, data.reconstruct_n(0, data.ntotal), strict=True):
            row = ids.tolist().index(item)
            gap = np.square(HALF.new * new_vectors(x[row : row + 1])[0] - vector[OLD_DIM:]).sum()
            assert own[row] == pytest.approx(calibration.offset - calibration.scale * gap, rel=1e-3, abs=1e-2)
