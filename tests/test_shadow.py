"""`fastfill-ray shadow`: what changes for users between two versions, over hand-made roots and a real one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
from fastfill_ray.report.hits import Hit
from fastfill_ray.report.shadow import Comparison, shadow_text
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


def test_old_vectors_that_are_missing_are_said_before_the_new_model_is_waited_for(tmp_path: Path) -> None:
    two_versions(tmp_path / "root", 0.4)
    config = {"gallery": {"path": "g", "payload_columns": ["v"]}, "new_model": {"embedder": "no.such:Model", "dim": 8}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "root")}))
    path = write(tmp_path / "queries.parquet", v=list(vectors(10, seed=7)))
    with pytest.raises(ConfigError, match=r"a version is fused: .* --old-vector-column"):
        ask(tmp_path / "root", queries=path, vector_column=None, config=str(tmp_path / "config.yaml"))


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


def test_one_query_has_no_interval_and_no_plural(tmp_path: Path) -> None:
    two_versions(tmp_path / "root")
    root, drawn = tmp_path / "root", vectors(40, seed=7)
    first = [ff.open_index(str(root), number).search(drawn, 1)[1][:, 0] for number in (0, 1)]
    other = int(np.argmax(first[0] != first[1]))
    path = write(tmp_path / "one.parquet", v=[drawn[other]], item_id=[int(first[0][other])], count=[2.5])
    lines = shadow_text(ask(root, queries=path), 100).splitlines()
    assert lines[0] == "Versions 0 and 1, asked the same query."
    assert lines[2] == "the same first hit: 0 %"
    assert lines[3].startswith("MRR of what users took, of 1 query: version 0 1.000, version 1 0.")
    assert lines[4] == "of these, version 1 ranks it better for 0 %, worse for 100 %"
    assert re.fullmatch(r"latency of version 0, one query at a time: [\d.]+ ms", lines[5])
    assert lines[8] == "1 query has another first hit."
    assert "row 0, traffic 2.5; " in lines[11]
    assert "(" not in "".join(lines[:9])
    two = shadow_text(ask(root, queries=write(tmp_path / "two.parquet", v=list(drawn[:2]))), 100)
    assert two.startswith("Versions 0 and 1, asked the same 2 queries. In brackets: 95 % intervals.")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"count": [1e308, 1]}, "count and weight come to 1e\\+308, at most 1e\\+24 is expected"),
        ({"count": [1e200, 1], "weight": [1e200, 1]}, "come to inf, at most"),
        ({"count": [1, np.nan]}, "row 1: 'count' is nan; a finite number of at least 0 is expected"),
        ({"weight": [-np.inf, 1]}, "row 0: 'weight' is -inf"),
        ({"count": [-1, 1]}, "row 0: 'count' is -1"),
        ({"count": [0, 0]}, "every count or weight is 0, so nothing is asked. Leave these columns out"),
    ],
)
def test_traffic_that_says_nothing_is_refused(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    two_versions(tmp_path / "root")
    path = write(tmp_path / "log.parquet", v=list(vectors(2, seed=7)), **columns)
    with pytest.raises(InputError, match=told):
        ask(tmp_path / "root", queries=path)


def test_traffic_of_0_is_not_asked_and_little_counts_as_it_is(tmp_path: Path) -> None:
    two_versions(tmp_path / "root")
    queries = list(vectors(4, seed=7))
    found = ask(tmp_path / "root", queries=write(tmp_path / "log.parquet", v=queries, count=[0, 0.0, 3, 1e-300]))
    assert (found.queries, found.covered) == (2, 1)
    alone = ask(tmp_path / "root", queries=write(tmp_path / "one.parquet", v=queries[2:3]))
    assert found.overlap.value == alone.overlap.value


@pytest.mark.parametrize("time", [[5, 1, 3, 2], [None, 1, 2, 3], [[1]] * 4, ["monday"] * 4])
def test_of_a_log_with_times_all_is_asked(tmp_path: Path, time: Any) -> None:
    """Nothing of it is held out, so nothing of its times is read."""
    two_versions(tmp_path / "root")
    queries = list(vectors(4, seed=7))
    plain = ask(tmp_path / "root", queries=write(tmp_path / "plain.parquet", v=queries, count=[4, 3, 2, 1]))
    path = write(tmp_path / "log.parquet", v=queries, count=[4, 3, 2, 1], time=time)
    found = ask(tmp_path / "root", queries=path)
    assert (found.queries, found.covered, found.overlap) == (4, 1, plain.overlap)


def test_what_is_wrong_with_the_file_is_said_of_the_option(tmp_path: Path) -> None:
    two_versions(tmp_path / "root")
    config = {"gallery": {"path": "g", "payload_columns": ["text"]}, "new_model": {"embedder": "m:E", "dim": 8}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "root")}))
    path = write(tmp_path / "queries.parquet", v=list(vectors(2)))
    with pytest.raises(ConfigError, match=r"^--queries, payload 'text' of --config: column 'text' is not in"):
        ask(tmp_path / "root", queries=path, vector_column=None, config=str(tmp_path / "config.yaml"))
    empty = write(tmp_path / "empty.parquet", v=pa.array([], pa.list_(pa.float32())))
    with pytest.raises(InputError, match=r"^--queries .*: there are no rows\. Name files that hold queries"):
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


@pytest.mark.parametrize("length", [8, 12, 13, 24, 36, 50])
def test_long_ids_leave_room_for_the_payload(tmp_path: Path, length: int) -> None:
    two_versions(tmp_path / "root")
    found = ask(tmp_path / "root", queries=write(tmp_path / "queries.parquet", v=list(vectors(40, seed=7))))
    sides = tuple([Hit(f"{name}{rank}".rjust(length, "0"), 0.5) for rank in range(5)] for name in "ab")
    example = found.examples[0]._replace(hits=sides)
    payload = {hit.id: [f"of {hit.id.strip('0')} and so on"] for hits in sides for hit in hits}
    text = shadow_text(replace(found, examples=(example,), columns=("text",), payload=payload), 100)
    for hits in sides:
        for hit in hits:
            assert str(hit.id) in text
            assert payload[hit.id][0][:8] in text
    assert all(len(line) <= 100 for line in text[text.index("\nversion 0") :].splitlines())
    assert ("version 0" + " " * 42 + "version 1" in text) == (length <= 12)


def test_why_there_is_no_payload_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    living = small_gallery(tmp_path / "here")
    living.run()
    config = living.config(queries={"path": "q", "payload_columns": ["x"]})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    path = write(tmp_path / "queries.parquet", x=[item.x for item in list(living.items.values())[:50]])
    for name in living.files:
        living.touch(name)
    command = ["shadow", living.root, "--queries", path, "--versions", "0,3", "--config", str(tmp_path / "config.yaml")]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().err.count("payload not shown") == 1
