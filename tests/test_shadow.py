"""`fastfill-ray shadow`: what changes for users between two versions, over hand-made roots and a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import fastfill_ray as ff
from fastfill_ray.cli import main
from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.report.shadow import Comparison
from fastfill_ray.retrieval.calibration import OrderCalibration
from fastfill_ray.shadow import ShadowRequest, shadow
from tests.index.test_reader import OLD_DIM
from tests.index.test_segment import vectors
from tests.living import small_gallery
from tests.stages.test_export import ORDER, mixed


def two_versions(path: Path, weight: float | None = None) -> None:
    """Versions 0 and 1: the first wave's stale items were re-embedded, the others calibrated otherwise."""
    made = mixed(path, "ip", weight)
    made.root.commit(made.new, *made.stale.values())
    later = made.at(OrderCalibration(ORDER.scale, 0.1, -0.3))
    made.root.commit(made.new, made.root.segment(vectors(40, seed=5), made.names[30:70]), later[2])


def ask(root: Path, **given: Any) -> Comparison:
    request = {"vector_column": "v", "old_vector_column": None, "config": None, "s3_endpoint": None, "versions": (0, 1)}
    return shadow(ShadowRequest(str(root), **{**request, **given}), say=lambda text: None)


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_figures_are_those_of_two_searches(tmp_path: Path) -> None:
    two_versions(tmp_path / "root")
    queries = vectors(40, seed=7)
    found = ask(tmp_path / "root", queries=write(tmp_path / "queries.parquet", v=list(queries)))
    before, now = (ff.open_index(str(tmp_path / "root"), number).search(queries, 10)[1] for number in (0, 1))
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(before.tolist(), now.tolist(), strict=True)]
    assert found.queries == found.overlap.queries == 40
    assert found.overlap.value == pytest.approx(np.mean(shared))
    assert found.overlap.low < found.overlap.value < found.overlap.high
    assert found.same_first.value == pytest.approx(np.mean(before[:, 0] == now[:, 0]))
    assert found.changed == (before[:, 0] != now[:, 0]).sum() > 0
    assert found.taken is None
    assert found.covered == 1
    assert all(0 < each.median_ms <= each.p95_ms for each in found.latency)
    example = found.examples[0]  # the one of which least is as it was
    row = int(example.row.rpartition(" ")[2])
    assert example.overlap == min(s for s, a, b in zip(shared, before, now, strict=True) if a[0] != b[0])
    assert [[hit.id for hit in hits] for hits in example.hits] == [before[row].tolist(), now[row].tolist()]


def test_a_log_weighs_queries_by_traffic_and_says_which_lose_what_users_took(tmp_path: Path) -> None:
    two_versions(tmp_path / "root")
    index = [ff.open_index(str(tmp_path / "root"), number) for number in (0, 1)]
    drawn = vectors(40, seed=7)
    first = [each.search(drawn, 1)[1][:, 0] for each in index]
    queries = drawn[np.argsort(first[0] == first[1], kind="stable")][:4]  # those whose first hit changes
    before, now = (each.search(queries, 10)[1] for each in index)
    # Of query 0 users took what was first before, of query 1 what is first now; the others are asked once.
    path = write(
        tmp_path / "log.parquet",
        v=[queries[row] for row in (0, 0, 1, 2, 3)],
        count=[3, 4, 2, 1, 1],
        item_id=pa.array([before[0, 0], before[0, 0], now[1, 0], None, None], pa.int64()),
    )
    found = ask(tmp_path / "root", queries=path)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(before.tolist(), now.tolist(), strict=True)]
    assert found.queries == 4
    assert found.overlap.value == pytest.approx(np.average(shared, weights=[7, 2, 1, 1]))
    assert found.taken is not None
    rank = [*now[0].tolist(), -1].index(before[0, 0]) + 1 if before[0, 0] in now[0] else np.inf
    other = before[1].tolist().index(now[1, 0]) + 1 if now[1, 0] in before[1] else np.inf
    assert found.taken.mrr[0].value == pytest.approx((7 + 2 / other) / 9)
    assert found.taken.mrr[1].value == pytest.approx((7 / rank + 2) / 9)
    assert (found.taken.flips.nfr.value, found.taken.flips.pfr.value) == pytest.approx((7 / 9, 2 / 9))
    assert found.examples[0].traffic == 7


def test_a_fused_version_is_asked_with_old_vectors_too(tmp_path: Path) -> None:
    two_versions(tmp_path / "root", 0.4)
    queries, old = vectors(10, seed=7), vectors(10, OLD_DIM, seed=8)
    path = write(tmp_path / "queries.parquet", v=list(queries), o=list(old))
    with pytest.raises(ConfigError, match=r"a version is fused: .* --old-vector-column"):
        ask(tmp_path / "root", queries=path)
    found = ask(tmp_path / "root", queries=path, old_vector_column="o")
    before, now = (
        ff.open_index(str(tmp_path / "root"), number).search(queries, 10, old_queries=old)[1] for number in (0, 1)
    )
    assert found.same_first.value == pytest.approx(np.mean(before[:, 0] == now[:, 0]))


def test_what_cannot_be_asked_is_refused_or_left_out(tmp_path: Path) -> None:
    two_versions(tmp_path / "root")
    good = vectors(3, seed=7)
    path = write(tmp_path / "queries.parquet", v=[*good, good[0][:5], None], other=["a"] * 5)
    said: list[str] = []
    request = ShadowRequest(str(tmp_path / "root"), None, path, (0, 1), "v", None, None)
    found = shadow(request, said.append)
    assert (found.queries, found.dropped) == (3, 2)
    assert any("2 of 5 queries are left out" in line and "row" in line for line in said)
    with pytest.raises(ConfigError, match="--queries needs --config"):
        ask(tmp_path / "root", queries=path, vector_column=None)
    with pytest.raises(ConfigError, match="--vector-column: column 'w' is not in"):
        ask(tmp_path / "root", queries=path, vector_column="w")
    with pytest.raises(ConfigError, match="two different ones"):
        ask(tmp_path / "root", queries=path, versions=(1, 1))
    empty = write(tmp_path / "empty.parquet", v=pa.array([None, None], pa.list_(pa.float32())))
    with pytest.raises(InputError, match="no query has a vector"):
        ask(tmp_path / "root", queries=empty)


def test_flips_are_shown_side_by_side_with_the_payload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    living = small_gallery(tmp_path / "here")
    living.run()
    config = living.config(gallery={"payload_columns": ["label"]}, queries={"path": "q", "payload_columns": ["x"]})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    write(tmp_path / "queries.parquet", x=[item.x for item in list(living.items.values())[:50]])
    monkeypatch.setenv("COLUMNS", "100")
    command = ["shadow", living.root, "--queries", str(tmp_path / "queries.parquet"), "--versions", "0,3"]
    command += ["--config", str(tmp_path / "config.yaml")]
    capsys.readouterr()
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Versions 0 and 3, asked the same 50 queries.")
    assert max(len(line) for line in lines if line[:1] in " v") <= 100
    heading = next(number for number, line in enumerate(lines) if line.startswith("version 0 "))
    assert lines[heading].split() == ["version", "0", "version", "3"]
    assert lines[heading + 1].split() == ["rank", "score", "id", "label"] * 2
    _, _, first, label, _, _, other, _ = lines[heading + 2].split()
    assert living.items[int(first)].label == label
    assert first != other

    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["versions"] == [0, 3]
    assert set(answer["latency"]) == {"0", "3"}
    hit = answer["examples"][0]["hits"]["0"][0]
    assert hit["payload"] == {"label": living.items[hit["id"]].label}
    with pytest.raises(SystemExit):
        main([*command[:-3], "three"])
