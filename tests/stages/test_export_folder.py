"""The folder of an export: what is damaged or gone in it is made again by the same call, or it says what to remove."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import ConfigError, CorruptFile, NotPublished, RefusedError, StorageError
from fastfill_ray.export import export_version, read_export
from fastfill_ray.log.records import Expire, Publish
from fastfill_ray.retrieval.calibration import OrderCalibration
from fastfill_ray.stages import export as stage
from fastfill_ray.stages import export_folder as folder
from fastfill_ray.stages.export_folder import begin_export
from fastfill_ray.stages.export_manifest import Exported, ExportRequest, Manifest
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.local import LocalFiles
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import sha256_hex
from fastfill_ray.types import canonical
from tests.index.test_reader import Root
from tests.index.test_segment import vectors
from tests.stages.test_export import ORDER, exported, mixed, mixed_root, table_in


def held(to: Path) -> dict[str, bytes]:
    """What a store reads of an export. Nobody needs the rest any more where this is whole."""
    there = [*(to / "data").iterdir(), to / "manifest.json"]
    return {path.name: path.read_bytes() for path in there}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    mixed_root(tmp_path / "root", "l2", None)
    return tmp_path / "root"


@pytest.mark.parametrize("damage", [flip, Path.unlink, cut])
@pytest.mark.parametrize(
    "names",
    [["manifest.json"], ["manifest.json", "export.json"], ["export.json"], ["parts"], ["parts", "manifest.json"],
     ["data"], ["data", "parts", "manifest.json"]],
)  # fmt: skip
def test_the_same_call_makes_again_what_is_damaged_or_says_what_to_remove(
    root: Path, tmp_path: Path, names: list[str], damage: Any
) -> None:
    to = tmp_path / "to"
    exported(root, to, baked=True)
    whole = held(to)
    for name in names:
        for path in sorted((to / name).iterdir())[:2] if name in ("parts", "data") else [to / name]:
            damage(path)
    if "export.json" in names and "manifest.json" in names:  # nothing says of what export its files are
        with pytest.raises(RefusedError, match=r"holds data/part-.*, and (there is no|export\.json is).* Remove what"):
            exported(root, to, baked=True)
        shutil.rmtree(to)
    elif damage is flip and "data" in names:  # of the same size: who loads it compares its sha256
        return
    exported(root, to, baked=True)
    assert held(to) == whole


def test_a_folder_whose_request_is_gone_is_bound_by_what_is_left(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    exported(root, to)
    (to / "export.json").unlink()
    with pytest.raises(RefusedError, match=r"holds another export, .*, not baked"):
        exported(root, to, baked=True)
    next((to / "data").iterdir()).unlink()
    exported(root, to)
    assert (to / "export.json").exists()
    assert len(table_in(to)[0]) == 115
    for left in ("parts", "deleted"):  # of an export that was interrupted, or that only takes out
        other = tmp_path / left
        (other / left).mkdir(parents=True)
        (other / left / "ids.parquet").write_bytes(b"what")
        with pytest.raises(RefusedError, match=rf"holds {left}/ids\.parquet, and there is no export\.json"):
            exported(root, other)
    empty = tmp_path / "empty"
    for name in ("data", "parts"):
        (empty / name).mkdir(parents=True)
    (empty / "export.json").write_text("torn")
    assert exported(root, empty).rows == 115


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", '{"name": "a web app"}'),
        ("index.faiss", "IxFI"),
        ("ids.parquet", "PAR1"),
        ("export.json", "{}"),
    ],
)
def test_what_is_not_an_exports_is_never_overwritten(root: Path, tmp_path: Path, name: str, content: str) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / name).write_text(content)
    (to / "notes.txt").write_text("of somebody")
    with pytest.raises(RefusedError, match=rf"to: holds {name}, and .* Remove what is in the folder, or give --to"):
        exported(root, to)
    assert {path.name: path.read_text() for path in to.iterdir()} == {name: content, "notes.txt": "of somebody"}
    (to / name).unlink()
    assert exported(root, to).rows == 115


def test_a_damaged_manifest_of_the_store_says_what_helps(root: Path, tmp_path: Path) -> None:
    exported(root, tmp_path / "to")
    flip(tmp_path / "to" / "manifest.json")
    with pytest.raises(CorruptFile, match=r"--since .*to: its manifest\.json is damaged\. Restore it .* or export"):
        read_export(str(tmp_path / "to"))


def test_a_root_is_known_by_its_log_wherever_it_lies(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.stale.values())
    root, link, to = tmp_path / "root", tmp_path / "link", tmp_path / "to"
    link.symlink_to(root)
    first = exported(root, to, baked=True)
    assert exported(link, to, baked=True) == exported(to / ".." / "root", to, baked=True) == first
    assert exported(link, tmp_path / "since", baked=True, since=first).rows == 0
    root.rename(tmp_path / "moved")
    assert exported(tmp_path / "moved", tmp_path / "since moved", baked=True, since=first).rows == 0
    link.unlink()
    link.symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigError, match="lies in the output root"):
        exported(tmp_path / "moved", link / "to")
    with pytest.raises(ConfigError, match="is an output root itself"):
        exported(tmp_path / "moved", mixed_root(tmp_path / "third", "ip", None).path)


def test_another_root_at_the_same_place_is_another_one(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.stale.values())
    first = exported(tmp_path / "root", tmp_path / "to", baked=True)
    shutil.rmtree(tmp_path / "root")
    mixed(tmp_path / "root", "ip", None).root.commit(made.new, *made.stale.values())
    with pytest.raises(RefusedError, match=r"which .* does not have, or not any more"):
        exported(tmp_path / "root", tmp_path / "since", baked=True, since=first)
    with pytest.raises(RefusedError, match="holds another export"):
        exported(tmp_path / "root", tmp_path / "to", baked=True)


def test_a_copy_that_went_its_own_way_is_not_followed(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.stale.values())
    shutil.copytree(tmp_path / "root", tmp_path / "copy")
    made.root.delete([1, 2])
    since = exported(tmp_path / "root", tmp_path / "to", baked=True)
    with pytest.raises(RefusedError, match="after 1 deletions, not those of"):
        exported(tmp_path / "copy", tmp_path / "since", baked=True, since=since)


def test_exports_of_an_earlier_release_are_known_by_their_place(tmp_path: Path) -> None:
    """They do not say which root they are of."""
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.stale.values())
    (tmp_path / "link").symlink_to(tmp_path / "root")
    to = tmp_path / "to"
    first = exported(tmp_path / "root", to, baked=True)
    earlier = first.model_copy(update={"origin": ""})
    for name in ("manifest.json", "export.json"):
        fields = json.loads((to / name).read_bytes())
        (to / name).write_bytes(_without_origin(name, fields))
    assert read_export(str(to)) == earlier
    assert exported(tmp_path / "link", to, baked=True) == earlier
    assert exported(tmp_path / "link", tmp_path / "since", baked=True, since=earlier).rows == 0
    (tmp_path / "root").rename(tmp_path / "moved")
    with pytest.raises(RefusedError, match=r"which .*moved does not have"):
        exported(tmp_path / "moved", tmp_path / "other", baked=True, since=earlier)


def test_of_two_processes_that_begin_at_once_the_first_binds_the_folder(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.stale.values())
    manifest = exported(tmp_path / "root", tmp_path / "some", baked=True)
    one = Exported(**manifest.model_dump(include=set(Exported.model_fields)))
    target = open_files(str(tmp_path / "to"))

    def while_another(begins: Exported) -> Exported:
        def complete(wanted: Exported) -> Exported:
            begin_export(target, begins, lambda each: each)
            return wanted

        return begin_export(target, one, complete)

    assert while_another(one) == one
    target.delete("export.json")
    with pytest.raises(RefusedError, match=r"holds another export, .* not baked"):
        while_another(one.model_copy(update={"baking": None}))


def test_of_two_processes_at_work_both_end_with_the_same(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    put = folder.put_part

    def after_the_other(target: Files, receipt: Receipt) -> Receipt:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "put_part", put)
            exported(root, to, baked=True)
        return put(target, receipt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "put_part", after_the_other)
        manifest = exported(root, to, baked=True)
    assert exported(root, tmp_path / "alone", baked=True) == manifest
    assert held(tmp_path / "alone") == held(to)


def changed_root(path: Path) -> Root:
    """Version 1: two segments more are new, the ids of two are gone from version 0."""
    made = mixed(path, "ip", None)
    made.root.commit(made.new, *made.stale.values())
    new = [made.root.segment(vectors(20, seed=n), made.names[30 + n : 50 + n]) for n in (0, 20)]
    made.root.commit(made.new, *new, made.at(OrderCalibration(ORDER.scale, 0.1))[2])
    return made.root


@pytest.mark.parametrize("at", range(6))
def test_what_changed_is_completed_after_a_full_disk(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every write."""
    changed_root(tmp_path / "root")
    first = exported(tmp_path / "root", tmp_path / "first", baked=True, version=0)
    writes = [at]
    temporary = LocalFiles._temporary

    def fills(self: LocalFiles, full: Path, data: bytes) -> Any:
        if writes[0] == 0 and "to" in full.parts:
            raise StorageError(f"writing {full}: No space left on device.")
        writes[0] -= "to" in full.parts
        return temporary(self, full, data)

    monkeypatch.setattr(LocalFiles, "_temporary", fills)
    with pytest.raises(StorageError, match="No space left"):
        exported(tmp_path / "root", tmp_path / "to", baked=True, since=first)
    assert not (tmp_path / "to" / "manifest.json").exists()
    monkeypatch.setattr(LocalFiles, "_temporary", temporary)
    exported(tmp_path / "root", tmp_path / "to", baked=True, since=first)
    exported(tmp_path / "root", tmp_path / "alone", baked=True, since=first)
    assert held(tmp_path / "to") == held(tmp_path / "alone")


def test_what_changed_is_completed_after_its_process_was_killed(tmp_path: Path) -> None:
    changed_root(tmp_path / "root")
    first = exported(tmp_path / "root", tmp_path / "first", baked=True, version=0)
    code = (
        "import sys, time; from fastfill_ray.stages import export as stage; from fastfill_ray import export; "
        "from fastfill_ray.engine.in_process import InProcessEngine; put = stage.put_part\n"
        "def slow(*given):\n    found = put(*given); print('one', flush=True); time.sleep(60); return found\n"
        "stage.put_part = slow; since = export.read_export(sys.argv[3]); export.export_version(sys.argv[1], "
        "sys.argv[2], stage.ExportRequest(baked=True, since=since), engine=InProcessEngine())"
    )
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("root", "to", "first"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.kill()
    process.wait()
    exported(tmp_path / "root", tmp_path / "to", baked=True, since=first)
    assert exported(tmp_path / "root", tmp_path / "alone", baked=True, since=first).rows == 40
    assert held(tmp_path / "to") == held(tmp_path / "alone")


def test_a_version_that_is_held_is_exported_by_number_and_an_expired_one_never(tmp_path: Path) -> None:
    made = mixed(tmp_path / "root", "ip", None)
    made.root.commit(made.new, *made.stale.values())
    first = exported(tmp_path / "root", tmp_path / "first", baked=True)
    number = made.root.commit(made.new, made.root.segment(vectors(90, seed=1), made.names[30:]), publish=False)
    assert exported(tmp_path / "root", tmp_path / "served", baked=True).version == 0
    assert exported(tmp_path / "root", tmp_path / "held", baked=True, version=number).new_rows == 120
    made.root.log.append(Publish(version=number))
    made.root.log.append(Expire(versions=(0,)))
    with pytest.raises(NotPublished, match="version 0 is expired; versions 1 can be opened"):
        exported(tmp_path / "root", tmp_path / "expired", version=0)
    with pytest.raises(RefusedError, match=r"version 0 of .* does not have, or not any more"):
        exported(tmp_path / "root", tmp_path / "since", since=first)
    with pytest.raises(NotPublished, match="version 7 does not exist"):
        exported(tmp_path / "root", tmp_path / "none", version=7)
    assert not (tmp_path / "none").exists()


def test_an_export_to_s3_is_made_again_and_followed_as_one_on_a_disk(
    root: Path, tmp_path: Path, bucket: str, moto_endpoint: str
) -> None:
    def to_s3(name: str, **request: Any) -> Manifest:
        asked = ExportRequest(baked=True, **request)
        to = f"s3://{bucket}/{name}"
        return export_version(str(root), to, asked, s3_endpoint=moto_endpoint, engine=InProcessEngine())

    first = to_s3("first")
    assert first.files == exported(root, tmp_path / "first", baked=True).files
    target = open_files(f"s3://{bucket}/first", s3_endpoint=moto_endpoint)
    target.delete("manifest.json")
    target.delete(first.files[0].path)
    assert to_s3("first") == first
    assert target.get(first.files[0].path) == (tmp_path / "first" / first.files[0].path).read_bytes()
    since = read_export(f"s3://{bucket}/first/", moto_endpoint)
    assert to_s3("since", since=since).rows == 0
    with pytest.raises(RefusedError, match=rf"s3://{bucket}/first: holds another export"):
        to_s3("first", since=since)


def test_a_target_that_cannot_be_a_folder_is_said(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"writing .*file/to/export\.json: Not a directory"):
        exported(root, tmp_path / "file" / "to")
    with pytest.raises(ConfigError, match="--to is empty"):
        export_version(str(root), "", ExportRequest(), engine=InProcessEngine())


def _without_origin(name: str, fields: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in fields.items() if key not in ("origin", "sha256")}
    return canonical({**rest, "sha256": sha256_hex(canonical([name, rest]))})
