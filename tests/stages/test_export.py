"""Exports of hand-made roots: what a store finds in them is what ``open_index`` finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import ConfigError, CorruptFile, NotPublished, RefusedError
from fastfill_ray.export import bake_queries, export_version
from fastfill_ray.index.segment_list import listed
from fastfill_ray.log.records import Publish, Segment
from fastfill_ray.retrieval.calibration import OrderCalibration
from fastfill_ray.retrieval.fusion import fusion_of
from fastfill_ray.stages import export as stage
from fastfill_ray.stages.export_manifest import ExportRequest, Manifest
from fastfill_ray.storage.arrow import matrix_column, table_bytes
from fastfill_ray.storage.paths import stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt
from fastfill_ray.storage.refs import put_file
from fastfill_ray.types import F32, Metric
from tests.index.test_reader import DIM, OLD_DIM, Root
from tests.index.test_segment import vectors

K = 10
PLACES = 0.0, 0.25, 0.75, 1.0  # of waves 0 to 3, two of which end at half of the items and at all
ORDER = OrderCalibration(scale=1.3, offset=-0.2, slope=0.5)


def exported(root: Path, to: Path, **request: Any) -> Manifest:
    return export_version(str(root), str(to), ExportRequest(**request), engine=InProcessEngine())


@dataclass
class Mixed:
    """A root of 120 items in three waves of 30, 40 and 50: the first is new, the others are stale."""

    root: Root
    names: list[Any]
    new: Segment
    stale: dict[int, Segment]

    def at(self, order: OrderCalibration) -> dict[int, Segment]:
        """The stale segments under another calibration."""
        return {
            wave: segment.model_copy(update={"calibration": order.at(PLACES[wave])})
            for wave, segment in self.stale.items()
        }


def mixed(
    path: Path,
    metric: Metric,
    weight: float | None,
    id_type: Literal["int64", "string"] = "int64",
    factory: str = "Flat",
) -> Mixed:
    fusion = None if weight is None else fusion_of(weight, metric, old_scale=0.5)
    root = Root(path, metric, id_type, factory, fusion, waves=(0.5, 1.0))
    names: list[Any] = [f"item {i}" for i in range(120)] if id_type == "string" else list(range(120))
    new, stale = root.segment(vectors(30, seed=1), names[:30]), {}
    for wave, first, rows in ((1, 30, 40), (2, 70, 50)):
        aligned, ids, calibration = vectors(rows, seed=first), names[first : first + rows], ORDER.at(PLACES[wave])
        if fusion is None:
            segment = root.segment(aligned, ids, calibration)
        else:
            segment = root.fused(vectors(rows, OLD_DIM, seed=first + 1), aligned, ids, calibration)
        stale[wave] = segment.model_copy(update={"wave": wave})
    return Mixed(root, names, new, stale)


def mixed_root(
    path: Path,
    metric: Metric,
    weight: float | None,
    id_type: Literal["int64", "string"] = "int64",
    factory: str = "Flat",
) -> Root:
    """Its version 0, of which three rows are superseded and two ids deleted."""
    made = mixed(path, metric, weight, id_type, factory)
    made.root.commit(made.new, made.root.hiding(made.stale[1], [0, 7, 39]), made.stale[2])
    made.root.delete([made.names[3], made.names[75]])
    return made.root


def table_in(to: Path) -> tuple[list[Any], F32, list[str]]:
    """Ids (N,), vectors (N, B) and states (N,) as a loader reads them: all files of the folder."""
    table = pq.read_table(to / "data")
    return (
        table.column("id").to_pylist(),
        np.stack(table.column("vector").to_pylist()),
        table.column("state").to_pylist(),
    )


def test_what_is_exported_is_what_a_search_can_return(tmp_path: Path) -> None:
    mixed_root(tmp_path / "root", "cosine", None, "string")
    manifest = exported(tmp_path / "root", tmp_path / "to")
    ids, stored, states = table_in(tmp_path / "to")
    index = ff.open_index(str(tmp_path / "root"))
    assert sorted(ids) == sorted(index.search(vectors(1, seed=5), index.rows)[1][0])
    assert (manifest.rows, manifest.new_rows, manifest.stale_rows) == (115, 29, 86)
    assert states.count("new") == 29
    assert (manifest.metric, manifest.dim, manifest.is_exact) == ("cosine", DIM, True)
    assert stored.shape == (115, DIM)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("weight", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("id_type", ["int64", "string"])
def test_a_baked_export_serves_the_mixed_state_by_inner_product_alone(
    tmp_path: Path, metric: Metric, weight: float | None, id_type: Literal["int64", "string"]
) -> None:
    mixed_root(tmp_path / "root", metric, weight, id_type)
    manifest = exported(tmp_path / "root", tmp_path / "to", baked=True)
    ids, stored, _ = table_in(tmp_path / "to")
    assert (manifest.metric, manifest.dim) == ("ip", stored.shape[1])
    index = ff.open_index(str(tmp_path / "root"))
    queries, old_queries = vectors(6, seed=99), vectors(6, OLD_DIM, seed=98)
    scores, found = index.search(queries, K, old_queries=old_queries)
    asked = bake_queries(tmp_path / "to" / "manifest.json", queries, old_queries)
    flat = faiss.IndexFlatIP(manifest.dim)
    flat.add(stored)
    by_faiss, rows = flat.search(asked, K)
    products = asked @ stored.T
    by_numpy = np.argsort(-products, axis=1)[:, :K]
    near = 1e-5 * ((asked**2).sum(axis=1)[:, None] + (stored**2).sum(axis=1).max())
    for of_store, their_scores in ((rows, by_faiss), (by_numpy, np.take_along_axis(products, by_numpy, axis=1))):
        assert [[ids[row] for row in line] for line in of_store.tolist()] == found.tolist()
        assert (np.abs(their_scores - scores) <= near).all()


def test_an_index_that_compresses_says_that_its_vectors_are_not_exact(tmp_path: Path) -> None:
    mixed_root(tmp_path / "root", "l2", None, factory="SQ8")
    assert not exported(tmp_path / "root", tmp_path / "to").is_exact
    mixed_root(tmp_path / "other", "l2", None, factory="IVF4,Flat")
    assert exported(tmp_path / "other", tmp_path / "there").is_exact


def test_a_fused_version_is_exported_baked_only(tmp_path: Path) -> None:
    mixed_root(tmp_path / "root", "ip", 0.4)
    with pytest.raises(RefusedError, match=r"version 0 is fused: .* Export it with --baked"):
        exported(tmp_path / "root", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_an_interrupted_export_goes_on_and_a_whole_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, to = tmp_path / "root", tmp_path / "to"
    mixed_root(root, "ip", None)
    monkeypatch.setattr(stage, "_GROUP_ROWS", 20)
    monkeypatch.setattr(stage, "_FILE_BYTES", 1)
    loads: list[str] = []
    load = stage.load_index

    def dies(data: bytes, **options: Any) -> Any:
        if len(loads) == 2:
            raise KeyboardInterrupt
        loads.append(options["name"])
        return load(data, **options)

    monkeypatch.setattr(stage, "load_index", dies)
    with pytest.raises(KeyboardInterrupt):
        exported(root, to)
    assert not (to / "manifest.json").exists()
    monkeypatch.setattr(stage, "load_index", load)
    there = set((to / "data").iterdir())
    assert there
    manifest = exported(root, to)
    assert there < set((to / "data").iterdir())
    assert len(table_in(to)[0]) == manifest.rows == 115
    assert {str(file.path) for file in manifest.files} == {f"data/{path.name}" for path in (to / "data").iterdir()}
    monkeypatch.setattr(stage, "load_index", None)  # nothing is read again
    assert exported(root, to) == manifest


def test_a_folder_holds_one_export(tmp_path: Path) -> None:
    root, to = tmp_path / "root", tmp_path / "to"
    made = mixed_root(root, "ip", None)
    exported(root, to)
    with pytest.raises(RefusedError, match=r"holds another export, .*, not baked, after 1 deletions; .* baked"):
        exported(root, to, baked=True)
    made.delete([1])
    with pytest.raises(RefusedError, match="after 2 deletions"):
        exported(root, to)
    with pytest.raises(ConfigError, match="lies in the output root"):
        exported(root, root / "to")
    with pytest.raises(NotPublished, match="version 7 does not exist"):
        exported(root, tmp_path / "other", version=7)


def test_queries_are_baked_from_a_manifest_of_a_baked_export_alone(tmp_path: Path) -> None:
    mixed_root(tmp_path / "root", "ip", None)
    exported(tmp_path / "root", tmp_path / "plain")
    with pytest.raises(ConfigError, match="this export is not baked"):
        bake_queries(tmp_path / "plain" / "manifest.json", vectors(1, seed=1))
    (tmp_path / "torn.json").write_text('{"baking": {"metric"')
    with pytest.raises(CorruptFile, match=r"torn\.json: not a manifest"):
        bake_queries(tmp_path / "torn.json", vectors(1, seed=1))
    with pytest.raises(CorruptFile, match="not a manifest of an export"):
        bake_queries({"baking": {"metric": "dot"}}, vectors(1, seed=1))


@dataclass
class Store:
    """What a vector store holds once it has taken in exports."""

    held: dict[Any, tuple[str, F32]] = field(default_factory=dict)
    manifest: Manifest | None = None

    def take(self, root: Path, to: Path, **request: Any) -> Manifest:
        """A full export at first, then what changed."""
        self.manifest = exported(root, to, since=self.manifest, **request)
        for ids in [pq.read_table(path) for path in sorted((to / "deleted").glob("*"))]:
            for each in ids.column("id").to_pylist():
                del self.held[each]
        if self.manifest.files:
            for each, vector, state in zip(*table_in(to), strict=True):
                self.held[each] = state, vector
        return self.manifest


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("weight", [None, 0.4])
def test_a_chain_of_exports_gives_what_a_full_one_gives(tmp_path: Path, metric: Metric, weight: float | None) -> None:
    """Waves, a quarantined row, deletions, an undeletion, a rollback; the scale stays, offset and slope do not."""
    made = mixed(tmp_path / "root", metric, weight)
    root, store, names = made.root, Store(), made.names
    queries, old_queries = vectors(6, seed=99), vectors(6, OLD_DIM, seed=98)

    def step(name: str) -> Manifest:
        manifest = store.take(tmp_path / "root", tmp_path / f"since {name}", baked=True)
        whole = exported(tmp_path / "root", tmp_path / f"whole {name}", baked=True)
        assert whole.baking is not None
        assert manifest.baking is not None
        ids, stored, states = table_in(tmp_path / f"whole {name}")
        assert {each: state for each, (state, _) in store.held.items()} == dict(zip(ids, states, strict=True))
        theirs = np.stack([store.held[each][1] for each in ids])
        asked = manifest.baking.queries(queries, old_queries if manifest.baking.old_dim else None)
        expected = whole.baking.queries(queries, old_queries if whole.baking.old_dim else None) @ stored.T
        np.testing.assert_allclose(asked @ theirs.T, expected, rtol=1e-4, atol=1e-3)
        return manifest

    root.commit(made.new, *made.at(ORDER).values())
    assert step("at first").rows == 120
    root.delete(names[40:44])
    deleted = step("deleted")
    assert (deleted.rows, deleted.deleted_rows) == (0, 4)
    later = made.at(OrderCalibration(ORDER.scale, 0.1, -0.3))
    embedded = root.segment(vectors(39, seed=5), names[30:69])
    root.commit(made.new, embedded, root.hiding(later[1], range(39)), later[2])
    wave = step("wave 1")
    assert (wave.rows, wave.new_rows, wave.deleted_rows) == (35, 35, 0)
    root.undelete(names[41:43])
    undeleted = step("undeleted")
    assert (undeleted.rows, undeleted.deleted_rows) == (2, 0)
    root.commit(made.new, embedded, root.segment(vectors(51, seed=6), names[69:]))
    assert step("the end").rows == 51
    root.log.append(Publish(version=0, reason="rollback"))
    assert step("rolled back").rows == 88
    root.log.append(Publish(version=1))
    assert step("forward again").rows == 37


def test_a_version_of_another_scale_keeps_the_scores_at_the_level_where_the_first_ten_end(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.at(ORDER).values())
    store = Store()
    first = store.take(tmp_path / "root", tmp_path / "first", baked=True)
    assert first.level is None  # this root has no pairs to ask with
    made.root.commit(made.new, *made.at(OrderCalibration(1.5, 0.1, 0.2)).values())
    with pytest.raises(RefusedError, match="another scale, and that export does not say how high scores are"):
        exported(tmp_path / "root", tmp_path / "second", since=first, baked=True)
    then = exported(tmp_path / "root", tmp_path / "second", since=first.model_copy(update={"level": 2.0}), baked=True)
    assert then.baking is not None
    assert (then.rows, then.baking.scale) == (0, 1.3)
    served, kept = 1.5 * 2.0 + 0.1, 1.3 * 2.0 + then.baking.offset
    assert kept == pytest.approx(served)
    other = exported(tmp_path / "root", tmp_path / "another", version=1, baked=True)  # of the same version
    third = exported(tmp_path / "root", tmp_path / "third", since=then, baked=True)
    with pytest.raises(RefusedError, match=r"holds another export, .* scale 1\.3, .* scale 1\.5"):
        exported(tmp_path / "root", tmp_path / "third", since=other, baked=True)
    assert exported(tmp_path / "root", tmp_path / "third", since=then, baked=True) == third
    assert then.baking.slope == pytest.approx(0.2)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("weight", [None, 0.4])
def test_the_lines_of_numpy_in_the_docs_bake_queries_alike(
    tmp_path: Path, metric: Metric, weight: float | None
) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if block.startswith("def bake"))
    found: dict[str, Any] = {"np": np}
    exec(code, found)
    mixed_root(tmp_path / "root", metric, weight)
    exported(tmp_path / "root", tmp_path / "to", baked=True)
    manifest = json.loads((tmp_path / "to" / "manifest.json").read_text())
    queries, old_queries = vectors(6, seed=99), vectors(6, OLD_DIM, seed=98)
    expected = bake_queries(manifest, queries, old_queries)
    np.testing.assert_allclose(found["bake"](queries, old_queries, manifest["baking"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("id_type", ["int64", "string"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_one_faiss_index_of_an_export_finds_what_open_index_finds(
    tmp_path: Path, id_type: Literal["int64", "string"], metric: Metric
) -> None:
    mixed_root(tmp_path / "root", metric, 0.4, id_type)
    root, to = str(tmp_path / "root"), str(tmp_path / "to")
    request = ExportRequest(baked=True)
    manifest = export_version(root, to, request, as_index=True, engine=InProcessEngine())
    queries, old_queries = vectors(6, seed=99), vectors(6, OLD_DIM, seed=98)
    _, expected = ff.open_index(root).search(queries, K, old_queries=old_queries)
    index = faiss.read_index(f"{to}/index.faiss")
    _, found = index.search(bake_queries(f"{to}/manifest.json", queries, old_queries), K)
    if id_type == "string":
        found = np.array(pq.read_table(f"{to}/ids.parquet").column("id").to_pylist(), object)[found]
    assert found.tolist() == expected.tolist()
    request = ExportRequest(since=manifest)
    with pytest.raises(ConfigError, match="one index holds a whole version"):
        export_version(root, str(tmp_path / "x"), request, as_index=True, engine=InProcessEngine())


def test_an_export_whose_process_is_killed_is_completed_by_the_same_call(tmp_path: Path) -> None:
    mixed_root(tmp_path / "root", "ip", None)
    code = (
        "import sys, time; from fastfill_ray.stages import export as stage; from fastfill_ray import export; "
        "from fastfill_ray.engine.in_process import InProcessEngine; put = stage.put_part\n"
        "def slow(*given):\n    found = put(*given); print('one', flush=True); time.sleep(60); return found\n"
        "stage.put_part = slow; export.export_version(sys.argv[1], sys.argv[2], stage.ExportRequest(baked=True), "
        "engine=InProcessEngine())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "root"), str(tmp_path / "to")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.kill()
    process.wait()
    assert not (tmp_path / "to" / "manifest.json").exists()
    manifest = exported(tmp_path / "root", tmp_path / "to", baked=True)
    assert len(table_in(tmp_path / "to")[0]) == manifest.rows == 115


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
@pytest.mark.parametrize("baked", [True, False])
def test_items_that_only_lie_in_another_segment_are_not_written_again(
    tmp_path: Path, factory: str, baked: bool
) -> None:
    """A bucket is rebuilt: of its items one has another vector, one is gone, one came, and one was deleted before."""
    made = mixed(tmp_path / "root", "ip", None, factory=factory)
    root, names = made.root, made.names
    root.commit(made.new, *made.stale.values())
    root.delete([names[40]])
    first = exported(tmp_path / "root", tmp_path / "first", baked=baked)
    root.undelete([names[40]])
    stale = vectors(40, seed=30)
    made_again = stale[[*range(20, 40), *range(19)]] * (1 + 1e-7)
    made_again[0] *= 1.001
    ids = [*names[50:70], *names[30:49], 1000]
    rebuilt = root.segment(np.vstack([made_again, vectors(1, seed=77)]), ids, made.stale[1].calibration)
    merged = root.segment(np.vstack([vectors(30, seed=1), vectors(1, seed=78)]), [*names[:30], 1001])
    root.commit(merged, rebuilt.model_copy(update={"wave": 1}), made.stale[2])
    since = exported(tmp_path / "root", tmp_path / "since", baked=baked, since=first)
    assert sorted(table_in(tmp_path / "since")[0]) == [names[40], names[50], 1000, 1001]
    assert (since.rows, since.new_rows, since.deleted_rows) == (4, 1, 1)


def test_a_store_without_stale_items_takes_in_those_of_any_scale_waves_and_alignment(tmp_path: Path) -> None:
    """Back from the end: until then nothing in it depends on them. From the first stale items on the scale stays."""
    made = mixed(tmp_path / "root", "ip", None)
    root, store = made.root, Store()
    pairs = table_bytes(pa.table({name: matrix_column(vectors(20, seed=3)) for name in ("new", "old")}))
    output = put_file(root.files, "pairs/p/pairs.parquet", pairs)
    put_receipt(root.files, stage_receipt("pairs", "p"), Receipt(unit="pairs", outputs=(output,), rows=20))
    stale = made.at(ORDER)
    root.commit(made.new, *stale.values())
    end = root.commit(made.new, root.segment(vectors(90, seed=5), made.names[30:]))
    assert store.take(tmp_path / "root", tmp_path / "end", baked=True).level is None
    root.log.append(Publish(version=0, reason="rollback"))
    back = store.take(tmp_path / "root", tmp_path / "back", baked=True)
    whole = exported(tmp_path / "root", tmp_path / "whole", baked=True)
    assert back.level == whole.level is not None
    assert back.baking == whole.baking
    assert back.baking is not None
    assert (back.rows, back.baking.scale) == (90, ORDER.scale)
    root.log.append(Publish(version=end))
    again = store.take(tmp_path / "root", tmp_path / "again", baked=True)
    assert (again.rows, again.stale_rows, again.baking) == (90, 0, back.baking)


def test_a_store_that_cannot_take_in_what_changed_is_refused(tmp_path: Path) -> None:
    """It has no dims for old vectors; or it has vectors as they are, and baked ones are asked for."""
    made = mixed(tmp_path / "root", "ip", 0.4)
    root = made.root
    end = root.commit(made.new, root.segment(vectors(90, seed=5), made.names[30:]))
    all_new = exported(tmp_path / "root", tmp_path / "new", baked=True)
    assert all_new.baking is not None
    assert all_new.baking.old_dim == 0
    plain = exported(tmp_path / "root", tmp_path / "plain")
    fused = root.commit(made.new, *made.stale.values())
    for since, asked, told in (
        (all_new, True, f"version {fused} holds old vectors, and that export has no dims for them"),
        (plain, False, f"version {fused} is fused, and that export is not baked"),
        (plain, True, "that export is not baked, --baked is asked for"),
    ):
        with pytest.raises(RefusedError, match=rf"--since: {told}\. Export the version as a whole"):
            exported(tmp_path / "root", tmp_path / "since", baked=asked, since=since)
    root.log.append(Publish(version=end))
    assert exported(tmp_path / "root", tmp_path / "since", since=plain).rows == 0


def test_another_alignment_is_refused_only_where_stale_items_stay(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    root = made.root
    root.commit(made.new, *made.stale.values())
    stale = exported(tmp_path / "root", tmp_path / "stale", baked=True)
    new = root.segment(vectors(90, seed=5), made.names[30:])
    root.commit(made.new, new)
    all_new = exported(tmp_path / "root", tmp_path / "new", baked=True, since=stale)
    version = root.log.state.versions[-1]
    plan = root.log.state.plan_of(version)
    root.log.append(plan.model_copy(update={"plan": "q", "alignment": "b", "follows": None}))
    again = root.segment(vectors(50, seed=70), made.names[70:], made.stale[2].calibration)
    segments = made.new, root.segment(vectors(40, seed=6), made.names[30:70]), again.model_copy(update={"wave": 2})
    body = version.model_copy(update={"plan": "q", "version": 2, "wave": 0, **listed(root.files, "q", segments)})
    root.log.append(body)
    root.log.append(Publish(version=2))
    with pytest.raises(RefusedError, match="alignment is b in version 2, and a in version 0: every stale vector"):
        exported(tmp_path / "root", tmp_path / "since", baked=True, since=stale)
    followed = exported(tmp_path / "root", tmp_path / "since", baked=True, since=all_new)
    assert (followed.rows, followed.stale_rows) == (90, 50)
