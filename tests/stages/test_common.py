"""Two versions restricted to what they have in common, against sets."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.index.deletion_vector import fresh_path, hidden_rows
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import FileRef, Segment
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.stages.common import common_items
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.arrow import table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import put_content
from tests.index.test_reader import Root

# Of one version: per id its payload (None: of a stale item nobody knows it) and whether it is live.
Items = dict[int, tuple[bytes | None, bool]]
ITEM = st.tuples(st.sampled_from([None, b"a", b"b"]), st.booleans())
ITEMS = st.dictionaries(st.integers(0, 15), ITEM, min_size=1, max_size=14)


def segments_for(root: Root, items: Items) -> list[Segment]:
    """Stale and new items in two segments each, those that are not live hidden."""
    found = []
    for is_new in (True, False):
        for part in (0, 1):
            mine = {key: each for key, each in items.items() if (each[0] is not None) == is_new and key % 2 == part}
            if not mine:
                continue
            columns: dict[str, pa.Array] = {"id": pa.array(list(mine), pa.int64())}
            if is_new:
                columns["payload"] = pa.array([payload * 16 for payload, _ in mine.values() if payload], pa.binary(16))
                columns["version"] = pa.nulls(len(mine), pa.binary(16))
            ids = put_content(root.files, lambda digest: f"index/{digest[:16]}.parquet", table_bytes(pa.table(columns)))
            nothing = FileRef(path="index/none.faiss", size=1, sha256="0" * 64)
            segment = Segment(
                bucket=part,
                wave=0,
                state="new" if is_new else "stale",
                space="new" if is_new else "aligned",
                dim=4,
                rows=len(mine),
                ids_digest=ids_digest(mine),
                index=nothing,
                ids=ids,
            )
            found.append(root.hiding(segment, [row for row, (_, live) in enumerate(mine.values()) if not live]))
    return found


def live(files: Files, segments: list[Segment]) -> list[int]:
    found: list[int] = []
    for segment in segments:
        ids = pq.read_table(pa.BufferReader(files.get(segment.ids.path))).column("id").to_numpy()
        found += np.delete(ids, hidden_rows(files, segment)).tolist()
        assert segment.live_rows > 0, "a segment of which nothing is left is left out"
    return sorted(found)


@given(before=ITEMS, now=ITEMS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_on_both_sides_is_what_both_have_unless_a_new_vector_was_given_up(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[int, tuple[bytes | None, bool]],
    now: dict[int, tuple[bytes | None, bool]],
) -> None:
    root = Root(tmp_path_factory.mktemp("root"))
    context = Context(InProcessEngine(), root.files, InputStore(), Progress(io.StringIO()))
    both = common_items(context, segments_for(root, before), segments_for(root, now), partial(fresh_path, "p", 1))
    expected = [
        key
        for key in sorted(before.keys() & now.keys())
        if before[key][1] and now[key][1] and before[key][0] in (None, now[key][0])
    ]
    assert live(root.files, both.before) == live(root.files, both.now) == expected
    assert both.items == len(expected)


def test_a_segment_in_which_nothing_differs_is_the_one_that_it_was(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    context = Context(InProcessEngine(), root.files, InputStore(), Progress(io.StringIO()))
    segments = segments_for(root, {0: (b"a", True), 2: (b"b", False), 1: (None, True)})
    written = set(root.files.list(""))
    both = common_items(context, segments, segments, partial(fresh_path, "p", 1))
    assert both == (segments, segments, 2)
    assert {path for path in set(root.files.list("")) - written if not path.startswith("compared/")} == set()
