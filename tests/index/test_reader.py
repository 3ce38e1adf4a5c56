import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.errors import CorruptFile, FileMissing, NotPublished, SpaceMismatch
from fastfill_ray.index import reader as reader_module
from fastfill_ray.index.deletion_vector import DeletionVector, fresh_path, put_deletion
from fastfill_ray.index.deletions import Deleted, write_ids
from fastfill_ray.index.reader import open_index
from fastfill_ray.index.segment import build_index, train_template
from fastfill_ray.index.segment_list import listed
from fastfill_ray.log.records import Delete, Expire, FileRef, Init, Plan, Publish, Segment, Undelete, Verdict, Version
from fastfill_ray.ordering.ids import combine_digests, ids_digest
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import Fusion, fuse
from fastfill_ray.storage.arrow import id_array, read_table, table_bytes
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.refs import put_file
from fastfill_ray.types import Metric
from tests.index.test_segment import brute_force, vectors

DIM, OLD_DIM = 8, 4
SALT = "0123456789abcdef" * 2


@dataclass
class Root:
    """A hand-made output root: versions of given segments, through the real log and files."""

    path: Path
    metric: Metric = "ip"
    id_type: Literal["int64", "string"] = "int64"
    factory: str = "Flat"
    fusion: Fusion | None = None
    waves: tuple[float, ...] = (1.0,)
    count: int = 0
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = open_files(str(self.path))
        self.log = Log(self.files)
        self.log.initialise(
            Init(id_type=self.id_type, metric=self.metric, old_dim=OLD_DIM, new_dim=DIM, old_space="o", new_space="n")
        )
        self.log.claim()
        self.template = train_template(self.factory, DIM, self.metric, vectors(400, seed=9))
        if self.fusion is not None:
            sample = fuse(vectors(400, OLD_DIM, seed=8), vectors(400, seed=9), self.fusion, self.metric)
            self.fused_template = train_template(self.factory, sample.shape[1], self.metric, sample)

    def plan(self, rows: int, digest: str) -> None:
        nothing = FileRef(path="plans/units.parquet", size=0, sha256="")
        self.log.append(
            Plan(
                plan="p", request="r", settings={}, ids_digest=digest, snapshot="s", pairs="p", alignment="a",
                scores="s", method="ridge", policy="random", waves=self.waves, thresholds=(0,), fusion=self.fusion,
                version_waves=tuple(range(10)),                stale_mode="aligned" if self.fusion is None else "fused",
                wave_rows=(0, rows), rows=rows, unusable_rows=0, factory=self.factory, stale_factory=self.factory,
                segment_rows=100, units=nothing, templates={}, objective="o", baselines={}, baseline_queries=None,
            )
        )  # fmt: skip

    def segment(
        self, items: NDArray[np.float32], ids: Any, calibration: Calibration | None = None, labels: Any = None
    ) -> Segment:
        number = self.count = self.count + 1
        table = pa.table({"id": id_array(ids, self.id_type)} | ({} if labels is None else {"label": labels}))
        return Segment(
            bucket=0, wave=0, state="new" if calibration is None else "stale",
            space="new" if calibration is None else "aligned", dim=DIM, rows=len(items), ids_digest=ids_digest(ids),
            index=put_file(self.files, f"index/{number}.faiss", build_index(self.template, items, self.metric)),
            ids=put_file(self.files, f"index/{number}.parquet", table_bytes(table)),
            calibration=calibration or Calibration(),
        )  # fmt: skip

    def fused(
        self,
        old: NDArray[np.float32],
        aligned: NDArray[np.float32],
        ids: Any,
        calibration: Calibration,
        labels: Any = None,
    ) -> Segment:
        """A stale segment of old vectors (N, OLD_DIM) and aligned ones (N, DIM)."""
        assert self.fusion is not None
        items = fuse(old, aligned, self.fusion, self.metric)
        data = build_index(self.fused_template, items, self.metric)
        made = self.segment(aligned, ids, calibration, labels)
        index = put_file(self.files, f"index/{self.count}-fused.faiss", data)
        changes = {"space": "fused", "fusion": self.fusion, "dim": items.shape[1], "index": index}
        return Segment.model_validate({**made.model_dump(), **changes})

    def hiding(self, segment: Segment, rows: Sequence[int], deleted: Sequence[int] = ()) -> Segment:
        """The segment with a deletion vector over `rows`, of which a DELETE hides `deleted`."""
        if not len(rows):
            return segment
        ids = read_table(self.files.get(segment.ids.path), name="ids").column("id").combine_chunks()
        vector = DeletionVector(np.array(rows, np.int64), np.isin(rows, deleted))
        return segment.model_copy(
            update={"deletion": put_deletion(self.files, fresh_path("p", 1, segment), vector, ids)}
        )

    def delete(self, ids: Any, kind: type[Delete] | type[Undelete] = Delete) -> str:
        """The path of the record's file."""
        file = write_ids(self.files, id_array(ids, self.id_type), SALT)
        self.log.append_deletion(lambda state: kind(ids=file, rows=len(set(ids)), salt=SALT))
        return file.path

    def undelete(self, ids: Any) -> str:
        return self.delete(ids, Undelete)

    @property
    def deleted(self) -> Deleted:
        """What is deleted now."""
        return Deleted.read(self.files, self.log.read().deletions)

    def commit(self, *segments: Segment, publish: bool = True, deletions: str = "") -> int:
        rows = sum(segment.plan_rows for segment in segments)
        digest = combine_digests(segment.plan_ids_digest for segment in segments)
        deleted = sum(segment.deletion.deleted_rows for segment in segments if segment.deletion is not None)
        number = len(self.log.state.versions)
        if number == 0:
            self.plan(rows, digest)
        self.log.append(
            Version(
                version=number, plan="p", wave=number, **listed(self.files, "p", segments), rows=rows, new_rows=0,
                quarantined=0, absent=0, deleted=deleted, deletions=deletions, fraction=0.0,
                ids_digest=digest, metrics=(),
                query_metrics=None, verdict=Verdict(publish=publish, reason="test"), seconds=0.0, final=False,
            )
        )  # fmt: skip
        if publish:
            self.log.append(Publish(version=number))
        return number


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
@pytest.mark.parametrize("id_type", ["int64", "string"])
def test_a_version_is_searched_like_one_calibrated_gallery(
    tmp_path: Path, metric: Metric, factory: str, id_type: Literal["int64", "string"]
) -> None:
    root = Root(tmp_path, metric, id_type, factory)
    parts = [vectors(rows, seed=rows) for rows in (50, 3, 40)]
    calibrations = [None, Calibration(scale=1.5, offset=-0.3), Calibration(scale=0.7, offset=0.2)]
    ids = np.random.default_rng(0).permutation(93) * 10**15
    named: list[Any] = ids.tolist() if id_type == "int64" else [f"item/{i}" for i in ids]
    starts = (0, 50, 53)
    root.commit(
        *(root.segment(p, named[s : s + len(p)], c) for p, s, c in zip(parts, starts, calibrations, strict=True))
    )
    index = open_index(str(tmp_path))
    assert (index.version, index.rows, index.dim, index.metric) == (0, 93, DIM, metric)
    assert index.needs_old_queries is False

    queries = vectors(6, seed=99)
    truth = np.concatenate(
        [
            (c.scale if c else 1) * brute_force(queries, p, metric) + (c.offset if c else 0)
            for p, c in zip(parts, calibrations, strict=True)
        ],
        axis=1,
    )
    order = np.argsort(-truth, axis=1)
    for k in (1, 10, 93):
        scores, found = index.search(queries, k, nprobe=8)
        assert np.allclose(scores, np.take_along_axis(truth, order, axis=1)[:, :k], atol=1e-4)
        assert found.tolist() == [[named[i] for i in row[:k]] for row in order]
    scores, found = index.search(queries, 95, nprobe=100)
    assert np.all(scores[:, 93:] == -np.inf)
    assert found[:, 93:].tolist() == [[-1 if id_type == "int64" else None] * 2] * 6
    assert found.dtype == (np.int64 if id_type == "int64" else object)


def test_equal_scores_come_in_the_order_of_segments_and_rows(tmp_path: Path) -> None:
    root = Root(tmp_path)
    same = np.ones((3, DIM), np.float32)
    root.commit(root.segment(same, [9, 8, 7]), root.segment(same, [1, 2, 3]))
    assert open_index(str(tmp_path)).search(np.ones((1, DIM)), 5)[1].tolist() == [[9, 8, 7, 1, 2]]


def test_a_reader_follows_publications_as_a_whole_and_stays_where_it_was_told(tmp_path: Path) -> None:
    root = Root(tmp_path)
    first, second = root.segment(vectors(5), range(5)), root.segment(vectors(4, seed=1), range(5, 9))
    root.commit(first)
    reader, pinned = open_index(str(tmp_path)), open_index(str(tmp_path), 0)
    assert reader.refresh() is False
    held = root.commit(first, second, publish=False)
    assert reader.refresh() is False
    assert open_index(str(tmp_path), held).rows == 9
    root.log.append(Publish(version=held))
    assert reader.refresh() is True
    assert (reader.version, reader.rows) == (1, 9)
    assert pinned.refresh() is False
    assert pinned.version == 0
    root.log.append(Publish(version=0, reason="rollback"))
    assert reader.refresh() is True
    assert reader.version == 0


def test_a_version_that_cannot_be_read_is_not_adopted(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.commit(root.segment(vectors(5), range(5)))
    reader = open_index(str(tmp_path))
    broken = root.segment(vectors(6), range(6))
    root.commit(broken)
    (tmp_path / broken.index.path).unlink()
    with pytest.raises(FileMissing, match=broken.index.path):
        reader.refresh()
    assert reader.version == 0
    assert reader.search(vectors(1), 1)[1].shape == (1, 1)


def test_what_cannot_be_opened_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="there is no log here"):
        open_index(str(tmp_path / "empty"))
    root = Root(tmp_path)
    with pytest.raises(NotPublished, match="nothing is published yet; there are no versions yet"):
        open_index(str(tmp_path))
    for _ in range(3):
        root.commit(root.segment(vectors(5), range(5)), publish=False)
    with pytest.raises(NotPublished, match="nothing is published yet; versions 0, 1, 2 can be opened by number"):
        open_index(str(tmp_path))
    root.log.append(Expire(versions=(1,)))
    with pytest.raises(NotPublished, match="version 1 is expired; versions 0, 2 can"):
        open_index(str(tmp_path), 1)
    with pytest.raises(NotPublished, match="version 7 does not exist; versions 0, 2 can"):
        open_index(str(tmp_path), 7)


@pytest.mark.parametrize("suffix", ["faiss", "parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lengthen", "swap"])
def test_a_file_that_is_not_the_recorded_one_is_refused_by_name(tmp_path: Path, suffix: str, damage: str) -> None:
    root = Root(tmp_path)
    root.commit(root.segment(vectors(5), range(5)), root.segment(vectors(5, seed=1), range(5, 10)))
    victim, other = tmp_path / f"index/1.{suffix}", tmp_path / f"index/2.{suffix}"
    data = victim.read_bytes()
    changed = {
        "flip": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "cut": data[:-1],
        "lengthen": data + b"\0",
        "swap": other.read_bytes(),
    }
    victim.unlink()
    victim.write_bytes(changed[damage])
    with pytest.raises(CorruptFile, match=f"index/1.{suffix}"):
        open_index(str(tmp_path))


def test_records_that_do_not_fit_their_files_are_refused(tmp_path: Path) -> None:
    root = Root(tmp_path)
    good, short = root.segment(vectors(5), range(5)), root.segment(vectors(4), range(4))
    cases = [
        (good.model_copy(update={"rows": 6}), r"index/1\.faiss: holds .* 5\), the record says .* 6\)"),
        (good.model_copy(update={"dim": 9}), r"index/1\.faiss: recorded with dim 9, .* bound to 8"),
        (good.model_copy(update={"ids": short.ids}), r"index/2\.parquet: holds 4 ids, the record says 5 rows"),
    ]
    for segment, message in cases:
        number = root.commit(segment)
        with pytest.raises(CorruptFile, match=message):
            open_index(str(tmp_path), number)


def test_bad_queries_are_refused(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.commit(root.segment(vectors(5), range(5)))
    index = open_index(str(tmp_path))
    with pytest.raises(SpaceMismatch, match="dim 4, the index has 8"):
        index.search(np.ones((1, 4)))
    with pytest.raises(ValueError, match="k is 0"):
        index.search(np.ones((1, DIM)), 0)
    for wrong in (2.5, "3", None):
        with pytest.raises(ValueError, match=rf"k is {wrong!r}: a whole number of at least 1 is expected"):
            index.search(np.ones((1, DIM)), k=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nprobe is 0"):
        index.search(np.ones((1, DIM)), nprobe=0)


def test_searches_during_a_refresh_see_one_version_or_the_other(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.commit(root.segment(vectors(5), range(5)))
    reader = open_index(str(tmp_path))
    root.commit(root.segment(vectors(5), range(100, 105)))
    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(reader.search, vectors(2, seed=3), 5) for _ in range(200)]
        assert reader.refresh() is True
        searches += [pool.submit(reader.search, vectors(2, seed=3), 5) for _ in range(50)]
    for search in searches:
        ids = search.result()[1]
        assert (ids < 5).all() or (ids >= 100).all()


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_version_with_hidden_rows_is_searched_like_its_live_rows(
    tmp_path: Path, metric: Metric, factory: str, data: st.DataObject
) -> None:
    root = Root(tmp_path / uuid.uuid4().hex, metric, "int64", factory)
    counts, calibrations = (20, 1, 30), [None, Calibration(scale=1.5, offset=-0.3), Calibration(scale=0.7, offset=0.2)]
    starts = np.cumsum((0, *counts))
    parts = [vectors(rows, seed=rows) for rows in counts]
    segments, hidden = [], []
    for part, start, calibration in zip(parts, starts, calibrations, strict=False):
        rows = sorted(data.draw(st.sets(st.integers(0, len(part) - 1))))
        deleted = [row for row in rows if row % 2]
        segments.append(root.hiding(root.segment(part, range(start, start + len(part)), calibration), rows, deleted))
        hidden += [start + row for row in rows]
        if deleted:
            root.delete([int(start) + row for row in deleted])
    root.commit(*segments)
    queries, index = vectors(25, seed=99), open_index(str(root.path))
    live = sum(counts) - len(hidden)
    assert index.rows == live
    truth = np.concatenate(
        [
            (c.scale if c else 1) * brute_force(queries, p, metric) + (c.offset if c else 0)
            for p, c in zip(parts, calibrations, strict=True)
        ],
        axis=1,
    )
    truth[:, hidden] = -np.inf
    best = np.argsort(-truth, axis=1)
    for k in (1, 10, sum(counts)):
        held = min(k, live)
        scores, ids = index.search(queries, k, nprobe=8)
        assert ids[:, :held].tolist() == best[:, :held].tolist()
        assert np.allclose(scores[:, :held], np.take_along_axis(truth, best, axis=1)[:, :held], atol=1e-4)
        assert (ids[:, held:] == -1).all()
        assert (scores[:, held:] == -np.inf).all()


def test_equal_scores_of_live_rows_come_in_the_order_of_segments_and_rows(tmp_path: Path) -> None:
    root = Root(tmp_path)
    same = np.ones((4, DIM), np.float32)
    root.commit(root.hiding(root.segment(same, [9, 8, 7, 6]), [1]), root.hiding(root.segment(same, [1, 2, 3, 4]), [0]))
    assert open_index(str(tmp_path)).search(np.ones((1, DIM)), 9)[1].tolist() == [[9, 7, 6, 2, 3, 4, -1, -1, -1]]


def test_another_deletion_vector_of_a_kept_segment_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path)
    first, second = root.segment(vectors(5), range(5)), root.segment(vectors(4, seed=1), range(5, 9))
    hiding = root.hiding(first, [0, 3])
    root.commit(hiding, second)
    reader, queries = open_index(str(tmp_path)), vectors(3)
    read: list[str] = []
    get = type(reader._files).get
    monkeypatch.setattr(type(reader._files), "get", lambda files, path: read.append(path) or get(files, path))

    def adopted(*segments: Segment) -> tuple[int, set[int], list[str]]:
        root.commit(*segments)
        read.clear()
        assert reader.refresh() is True
        return (
            reader.rows,
            set(reader.search(queries, 9)[1].ravel().tolist()) - {-1},
            [path for path in read if path.startswith("index/") and "/segments." not in path],
        )

    more = root.hiding(first, [0, 1, 3])
    assert more.deletion is not None
    assert hiding.deletion is not None
    assert adopted(more, second) == (6, {2, 4, 5, 6, 7, 8}, [more.deletion.file.path])
    assert adopted(more, second) == (6, {2, 4, 5, 6, 7, 8}, [])
    assert adopted(first, second) == (9, set(range(9)), [])
    assert adopted(hiding, second) == (7, {1, 2, 4, 5, 6, 7, 8}, [hiding.deletion.file.path])


def test_refresh_reads_the_files_of_new_segments_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(tmp_path)
    segments = [root.segment(vectors(5, seed=n), range(5 * n, 5 * n + 5)) for n in range(4)]
    root.commit(*segments[:3])
    reader = open_index(str(tmp_path))
    read: list[str] = []
    get = type(reader._files).get
    monkeypatch.setattr(type(reader._files), "get", lambda files, path: read.append(path) or get(files, path))

    def files_read() -> list[str]:
        read.clear()
        reader.refresh()
        return sorted(path for path in read if path.startswith("index/") and "/segments." not in path)

    assert files_read() == []
    root.commit(segments[0], segments[3])
    assert files_read() == sorted([segments[3].index.path, segments[3].ids.path])
    root.commit(segments[3])
    assert files_read() == []
    assert reader.rows == 5


@pytest.mark.parametrize("id_type", ["int64", "string"])
@pytest.mark.parametrize("few", [0, 1000])
def test_the_ids_of_few_hits_and_of_many_are_those_of_their_rows(
    tmp_path: Path, id_type: Literal["int64", "string"], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_FEW_HITS", few)
    root, parts = Root(tmp_path, id_type=id_type), [vectors(rows, seed=rows) for rows in (5, 9, 7)]
    names = np.arange(100, 121) if id_type == "int64" else np.array([f"item {n}" for n in range(21)], object)
    root.commit(*(root.segment(part, ids) for part, ids in zip(parts, np.split(names, [5, 14]), strict=True)))
    queries = vectors(3, seed=1)
    _, ids = open_index(str(tmp_path)).search(queries, 23)
    assert ids[:, 21:].tolist() == [[-1 if id_type == "int64" else None] * 2] * 3
    expected = names[np.argsort(-brute_force(queries, np.concatenate(parts), "ip"))]
    assert ids[:, :21].tolist() == expected.tolist()


def test_a_deletion_vector_that_cannot_be_read_keeps_the_version_out(tmp_path: Path) -> None:
    root = Root(tmp_path)
    first = root.segment(vectors(5), range(5))
    root.commit(first)
    reader = open_index(str(tmp_path))
    broken = root.hiding(first, [1])
    assert broken.deletion is not None
    path = broken.deletion.file.path
    root.commit(broken)
    (tmp_path / path).write_bytes(b"x" * broken.deletion.file.size)
    with pytest.raises(CorruptFile, match=path):
        reader.refresh()
    assert (reader.version, reader.rows) == (0, 5)
