"""Columns of the gallery beside exported items: the rows that the gallery has, or a refusal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fastfill_ray.cli import main
from fastfill_ray.config import GalleryConfig
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import ConfigError, RefusedError
from fastfill_ray.export import export_version, gallery_columns
from fastfill_ray.inputs import table as tables
from fastfill_ray.inputs.locate import InputFile, InputStore
from fastfill_ray.inputs.parquet import Footer
from fastfill_ray.stages import export as stage
from fastfill_ray.stages.export_columns import GalleryColumns
from fastfill_ray.stages.export_manifest import ExportRequest, Manifest
from tests.living import Begun, Living, small_gallery, without


def export_columns(living: Living, to: Path, names: tuple[str, ...], **request: Any) -> Manifest:
    columns = GalleryColumns(
        names, InputStore(), GalleryConfig(path=str(living.folder / "gallery"), payload_columns=("x",))
    )
    request.setdefault("columns", columns)
    return export_version(living.root, str(to), ExportRequest(**request), engine=InProcessEngine())


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """249 items with their first version, made once."""
    return Begun.of(tmp_path_factory.mktemp("begun"), small_gallery, lambda living: living.run(until="version0"))


@pytest.fixture
def living(begun: Begun) -> Living:
    return begun.get()


def test_every_item_has_its_own_rows_values(living: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_GROUP_ROWS", 20)
    monkeypatch.setattr(stage, "_FILE_BYTES", 1)
    manifest = export_columns(living, tmp_path / "to", ("label", "x"), baked=True)
    table = pq.read_table(tmp_path / "to" / "data")
    assert table.column_names == ["id", "vector", "state", "label", "x"]
    assert manifest.columns == ("label", "x")
    assert table.num_rows == manifest.rows == len(living.items)
    for row in table.select(["id", "label", "x"]).to_pylist():
        item = living.items[row["id"]]
        assert row["label"] == item.label
        np.testing.assert_array_equal(np.array(row["x"], np.float32), item.x)
    file = pq.ParquetFile(next((tmp_path / "to" / "data").iterdir()))
    codecs = {file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i).compression
              for i in range(file.metadata.num_columns)}  # fmt: skip
    assert codecs == {"id": "ZSTD", "vector.list.element": "UNCOMPRESSED", "state": "ZSTD", "label": "ZSTD",
                      "x.list.element": "ZSTD"}  # fmt: skip


def test_items_of_several_plans_are_found_and_changes_follow(living: Living, tmp_path: Path) -> None:
    living.run()
    first = export_columns(living, tmp_path / "first", ("label",))
    name = next(iter(living.files))
    dropped = list(living.files[name])[:10]
    living.edit(name, lambda items: {**without(items, dropped), **living.new_items(50_000, 15)})
    living.run()
    since = export_columns(living, tmp_path / "since", ("label",), since=first)
    table = pq.read_table(tmp_path / "since" / "data")
    assert since.deleted_rows == 10
    assert set(range(50_000, 50_015)) <= set(table.column("id").to_pylist())
    export_columns(living, tmp_path / "whole", ("label",))
    whole = pq.read_table(tmp_path / "whole" / "data")
    for part in (table, whole):
        labels = dict(zip(part.column("id").to_pylist(), part.column("label").to_pylist(), strict=True))
        assert labels == {key: living.items[key].label for key in labels}
    assert whole.num_rows == len(living.items)
    with pytest.raises(RefusedError, match=r"that export has --columns label\. Give the same ones"):
        export_columns(living, tmp_path / "other", ("x",), since=first)
    with pytest.raises(RefusedError, match="Give the same ones"):
        export_columns(living, tmp_path / "other", (), since=first, columns=None)


def test_files_that_changed_or_are_gone_are_refused(living: Living, tmp_path: Path) -> None:
    name = next(iter(living.files))
    living.touch(name)
    with pytest.raises(RefusedError, match=rf"{name} has changed since .* Export without --columns"):
        export_columns(living, tmp_path / "to", ("label",))
    (living.folder / "gallery" / name).unlink()
    with pytest.raises(RefusedError, match=r"or is gone from gallery\.path of --config\. Export without"):
        export_columns(living, tmp_path / "to", ("label",))
    assert not (tmp_path / "to").exists()
    assert export_columns(living, tmp_path / "to", (), columns=None).rows == 249


def test_a_file_that_changes_while_it_is_exported_is_refused_too(
    living: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = stage.load_index

    def touches(data: bytes, **options: Any) -> Any:
        living.touch(next(iter(living.files)))
        return load(data, **options)

    monkeypatch.setattr(stage, "load_index", touches)
    with pytest.raises(RefusedError, match="has changed, or is gone"):
        export_columns(living, tmp_path / "to", ("label",))
    assert not (tmp_path / "to" / "manifest.json").exists()


def test_columns_that_cannot_be_exported_are_refused(living: Living, tmp_path: Path) -> None:
    for names, match in (
        (("label", "vector"), "'vector': every export has a column of that name"),
        (("label", "label"), "'label': it is named twice"),
        (("label", ""), "--columns: a name is empty"),
        (("lable",), "--columns: column 'lable' is not in .* Did you mean label"),
    ):
        with pytest.raises(ConfigError, match=match):
            export_columns(living, tmp_path / "to", names)
    with pytest.raises(ConfigError, match="--columns needs --config"):
        gallery_columns(["label"], None)
    export_columns(living, tmp_path / "to", ("label",))
    with pytest.raises(
        RefusedError, match=r"holds another export, .*, with label, .*; this one is .* not baked, after"
    ):
        export_columns(living, tmp_path / "to", (), columns=None)


def test_the_footer_of_a_file_is_read_once_before_anything_is_exported(
    living: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, footers = tables.read_footer, []

    def counts(store: InputStore, file: InputFile) -> Footer:
        footers.append(file.path)
        return read(store, file)

    monkeypatch.setattr(tables, "read_footer", counts)
    export_columns(living, tmp_path / "to", ("label",))
    assert len(footers) == len(set(footers)) == len(living.files)


def test_types_that_differ_between_files_are_one_where_arrow_can(living: Living, tmp_path: Path) -> None:
    """Text in one file and large text in another."""
    other = small_gallery(tmp_path / "there")
    path = other.folder / "gallery" / "part-001.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("group")
    pq.write_table(table.set_column(place, "group", table.column("group").cast(pa.large_string())), path)
    other.run(until="version0")
    export_columns(other, tmp_path / "to", ("group",))
    groups = {row["id"]: row["group"] for row in pq.read_table(tmp_path / "to" / "data").to_pylist()}
    assert groups == {key: f"group-{key % 3}" for key in other.items}


def test_types_that_no_column_holds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    other = small_gallery(tmp_path / "there")
    for number in range(3):
        there = other.folder / "gallery" / f"part-00{number}.parquet"
        values = pa.array(["a"] * 83) if number == 2 else pa.array(range(83), pa.int32() if number else pa.int64())
        pq.write_table(pq.read_table(there).append_column("n", values), there)
    other.run(until="version0")
    with pytest.raises(RefusedError, match=r"--columns: 'n' is string in .*part-002\.parquet, and int64 in files"):
        export_columns(other, tmp_path / "to", ("n",))
    assert not (tmp_path / "to").exists()


def test_values_that_the_common_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    other = small_gallery(tmp_path / "there")
    for number, values in enumerate((pa.array([2**60 + 1] * 83), pa.array([0.5] * 83), pa.array([None] * 83))):
        path = other.folder / "gallery" / f"part-00{number}.parquet"
        pq.write_table(pq.read_table(path).append_column("n", values), path)
    other.run(until="version0")
    with pytest.raises(RefusedError, match=r"'n' of .*part-000\.parquet is to become double, .* cannot"):
        export_columns(other, tmp_path / "to", ("n",))


@pytest.mark.parametrize(("names", "kind"), [(("7", "12"), "int64"), (("7", "de"), "string")])
def test_columns_of_folders_names_are_exported_as_other_columns_are(
    tmp_path: Path, names: tuple[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Hive and Spark write partitions; one folder says that there is no value."""
    monkeypatch.setattr(stage, "_GROUP_ROWS", 20)
    monkeypatch.setattr(stage, "_FILE_BYTES", 1)
    other = small_gallery(tmp_path / "there", index={"segment_rows": 100})
    of_item: dict[int, Any] = {}
    for file, name in zip(sorted(other.files), (*names, "__HIVE_DEFAULT_PARTITION__"), strict=True):
        (other.folder / "gallery" / f"country={name}").mkdir()
        value = None if name.startswith("__") else int(name) if kind == "int64" else name
        of_item |= dict.fromkeys(other.files[file], value)
        other.rename(file, f"country={name}/{file}")
    other.run(until="version0")
    export_columns(other, tmp_path / "to", ("country", "label"))
    types = {pq.read_schema(path).field("country").type for path in (tmp_path / "to" / "data").iterdir()}
    assert types == {pa.type_for_alias(kind)}
    rows = pq.read_table(tmp_path / "to" / "data").to_pylist()
    assert {row["id"]: row["country"] for row in rows} == of_item
    with pytest.raises(ConfigError, match="column 'land' is not in"):
        export_columns(other, tmp_path / "other", ("land",))


def test_the_command_line_names_columns_and_where_the_gallery_is(
    living: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(living.config()))
    made = partial(export_version, engine=InProcessEngine())
    monkeypatch.setattr("fastfill_ray.export.export_version", made)
    to = str(tmp_path / "to")
    command = ["export", living.root, "--to", to, "--columns", "label,x", "--config", str(tmp_path / "config.yaml")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("version 0: 249 items (")
    assert "Nothing calibrates the scores of its stale items" in out
    assert main([*command[:3], f"{to} baked", "--baked"]) == 0
    assert "calibrates" not in capsys.readouterr().out
    assert pq.read_table(tmp_path / "to" / "data").column_names == ["id", "vector", "state", "label", "x"]
