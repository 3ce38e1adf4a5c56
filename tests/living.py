"""A gallery that changes, its plain model, and what a run over it must come to.

Each item has a payload that no other has. The journal of the embedder says what was embedded; after a start that was
killed, what it had embedded for no receipt is struck out: that is embedded again, and nothing else may be.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray import backfill
from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.engine.interface import Finish
from fastfill_ray.export import export_version
from fastfill_ray.index.deletion_vector import read_deletion
from fastfill_ray.index.segment import load_index
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.index.verify import verify
from fastfill_ray.inputs.changes import payload_digests
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import Plan, Segment, Version
from fastfill_ray.log.state import State
from fastfill_ray.retrieval.fusion import fuse
from fastfill_ray.stages import embed
from fastfill_ray.stages.delete import delete
from fastfill_ray.stages.embed import items_file
from fastfill_ray.stages.export_manifest import ExportRequest, Manifest
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import parse_unit_receipt, stage_receipt
from fastfill_ray.storage.receipts import find_receipts, read_receipt
from tests import synthetic
from tests.integration.conftest import in_process

RunIt = Callable[..., ff.BackfillResult]
Rows = dict[int | str, tuple[str, np.ndarray]]  # {id: (state, vector)} of an export


class Killed(BaseException):
    """What a process that ends at once looks like from within."""


@dataclass(frozen=True)
class Item:
    """One item: its latent factors are its payload, and others (None: it is newer than the old model) are behind its
    old vector.
    """

    x: np.ndarray
    old: np.ndarray | None
    label: str = "class-0"
    version: str | None = None

    @property
    def has_old(self) -> bool:
        return self.old is not None

    @property
    def marker(self) -> str:
        """How the journal calls it."""
        return synthetic.marker(self.x[0])


class Held(NamedTuple):
    """An item in a version. state: "new" or "stale"; vector: (E,), normalised."""

    state: str
    vector: np.ndarray
    label: str


@dataclass
class Living:
    """A gallery of files {name: {id: item}}, written as they change, and every payload that was ever due.

    folder: holds the gallery, the output and the journal. bad: markers that the embedder refuses. again: of items that
    are to be embedded once more, although their payload is what it was.
    """

    folder: Path
    files: dict[str, dict[int, Item]] = field(default_factory=dict)
    seed: int = 0
    string_ids: bool = False
    sections: dict[str, Any] = field(default_factory=dict)
    engine: RunIt = in_process
    bad: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)
    due: set[str] = field(default_factory=set)
    gone: dict[int, Item] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.journal.mkdir(parents=True)
        (self.folder / "gallery").mkdir()
        self._random = np.random.default_rng(self.seed)
        self._clock = 1_700_000_000_000_000_000
        self._is_running = False
        self._log: Log | None = None
        self._markers: dict[bytes, str] = {}
        self._new: dict[int, dict[int, str]] = {}  # {version: {id: marker} of what is new in it}
        self.control()

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def root(self) -> str:
        return str(self.folder / "out")

    @property
    def items(self) -> dict[int, Item]:
        """All items by id."""
        return {key: item for file in self.files.values() for key, item in file.items()}

    # What happens to a gallery

    def new_item(self, *, has_old: bool = True) -> Item:
        """An item with a payload that no other has."""
        return self.new_items(0, 1, has_old=has_old)[0]

    def new_items(self, start: int, count: int, *, has_old: bool = True) -> dict[int, Item]:
        """Items of the ids from `start` on."""
        centres = synthetic._matrix(3, (synthetic.CLASSES, synthetic.LATENT)) * 1.2
        items = []
        for i in range(count):
            kind = int(self._random.integers(synthetic.CLASSES))
            x = (centres[kind] + self._random.normal(size=synthetic.LATENT)).astype(np.float32)
            items.append(Item(x, x if has_old else None, f"class-{kind}", f"v{len(self._markers) + i}"))
        digests = payload_digests(pa.table({"x": pa.array([item.x for item in items])}), ["x"]).to_pylist()
        self._markers |= {digest: item.marker for digest, item in zip(digests, items, strict=True)}
        return dict(enumerate(items, start))

    def changed(self, item: Item, what: str = "payload") -> Item:
        """The item with another payload, of which the old model knows nothing yet; or another old vector, or label."""
        other = self.new_item()
        if what == "payload":
            return replace(other, old=item.old)
        label = synthetic.CLASSES - 1 - int(item.label[-1])
        return replace(item, old=other.x) if what == "old vector" else replace(item, label=f"class-{label}")

    def write(self, name: str, items: dict[int, Item]) -> None:
        """Write a file; a file of no items is removed."""
        path = self.folder / "gallery" / name
        self.gone |= self.files.pop(name, {})
        if not items:
            path.unlink(missing_ok=True)
            return
        self.files[name] = dict(items)
        if self._is_running:  # a run adopts what comes while it goes on
            self.due |= {item.marker for item in items.values()}
        x = np.stack([item.x for item in items.values()])
        old = [None if item.old is None else synthetic.old_vectors(item.old[None])[0] for item in items.values()]
        table = pa.table(
            {
                "id": [f"item-{key}" for key in items] if self.string_ids else pa.array(list(items), pa.int64()),
                "x": pa.array(list(x)),
                "label": [item.label for item in items.values()],
                "group": [f"group-{int(key) % 3}" for key in items],
                "updated": pa.array([item.version for item in items.values()], pa.string()),
                "embedding": pa.array(old, pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, path, row_group_size=64)
        self.touch(name)

    def edit(self, name: str, edit: Callable[[dict[int, Item]], dict[int, Item]]) -> None:
        """Write a file as `edit` makes it of what it holds."""
        self.write(name, edit(dict(self.files[name])))

    def touch(self, name: str) -> None:
        """As if it had been copied: the same bytes, another time."""
        self._clock += 1_000_000_000
        os.utime(self.folder / "gallery" / name, ns=(self._clock, self._clock))

    def rename(self, name: str, other: str) -> None:
        (self.folder / "gallery" / name).rename(self.folder / "gallery" / other)
        self.files[other] = self.files.pop(name)

    # What runs over it

    def control(self) -> None:
        """Tell the embedder which items it refuses."""
        values = {"journal": str(self.journal), "bad": dict.fromkeys(self.bad, "raise")}
        (self.folder / "control.json").write_text(json.dumps(values))

    def config(self, **sections: Any) -> dict[str, Any]:
        return synthetic.config(self.folder, **{**self.sections, **sections})

    def run(self, **options: Any) -> ff.BackfillResult:
        """The nightly command."""
        self.control()
        self.due |= {item.marker for item in self.items.values()}
        self._is_running = True
        try:
            return self.engine(self.config(), **options)
        finally:
            self._is_running = False
            self.check_embedded_once()

    def run_killed(self, *, units: int | None = None, puts: int | None = None, **options: Any) -> bool:
        """The nightly command, in a process that ends at once: after so many units, or at a write to the root.

        Returns:
            Whether it was killed; False where it ended before.
        """
        self.control()
        self.due |= {item.marker for item in self.items.values()}
        with _dies(units, puts):
            try:
                self.engine(self.config(), **options)
            except Killed:
                self.strike_out()
                return True
            finally:
                self.check_embedded_once()
        return False

    def rollback(self, version: int) -> None:
        """``fastfill-ray rollback``."""
        from fastfill_ray.cli import main

        assert main(["rollback", self.root, "--to", str(version)]) == 0

    def exported(self, to: Path, since: Manifest | None = None) -> tuple[Manifest, Rows]:
        """A baked export of what is served, and what its files hold."""
        request = ExportRequest(baked=True, since=since)
        manifest = export_version(self.root, str(to), request, engine=InProcessEngine(), stream=io.StringIO())
        rows: Rows = {}
        for file in manifest.files:
            table = pq.read_table(to / file.path)
            columns = (table.column(name).to_pylist() for name in ("id", "state", "vector"))
            rows |= {key: (state, np.array(vector, np.float32)) for key, state, vector in zip(*columns, strict=True)}
        return manifest, rows

    # What is to be true

    def embedded(self) -> list[str]:
        """The markers of everything that was embedded, as often as it was."""
        return sorted(line for path in self.journal.iterdir() for line in path.read_text().split())

    def strike_out(self) -> None:
        """Forget what the embedder did for units that have no receipt."""
        kept = Counter(self.embedded()) & Counter(self.vouched())
        for path in self.journal.iterdir():
            path.unlink()
        (self.journal / "before.txt").write_text("".join(f"{each}\n" for each in sorted(kept.elements())))

    def vouched(self) -> list[str]:
        """The markers of everything that receipts vouch for."""
        if not Path(self.root).exists():
            return []
        files, found = open_files(self.root), []
        listed = {
            path.rpartition("/")[0]
            for top in ("pairs", "vectors")
            for path in files.list(top)
            if parse_unit_receipt(path)
        }
        for folder in sorted(listed):
            for receipt in find_receipts(files, folder).values():
                if (items := items_file(receipt)) is not None:
                    digests = pq.read_table(Path(self.root) / items.path).column("payload").to_pylist()
                    found += [self._markers[digest] for digest in digests]
        return found

    def check_embedded_once(self) -> None:
        """Whatever was embedded was due, and is embedded once."""
        counts = Counter(self.embedded())
        twice = [marker for marker, count in counts.items() if count > 1 + (marker in self.again)]
        assert not twice, f"{len(twice)} of {len(counts)} items were embedded again"
        assert set(counts) <= self.due, "an item was embedded that was due in no run"

    def state(self) -> State:
        """What the log says; of a log that is read already only what is new."""
        if self._log is None:
            self._log = Log(open_files(self.root))
        return self._log.read()

    def held(self, version: Version) -> dict[int, Held]:
        """What a version has, also what a DELETE hides of it; every id once."""
        files = open_files(self.root)
        found: dict[int, Held] = {}
        for segment in segments_of(files, version):
            table = pq.read_table(Path(self.root) / segment.ids.path)
            vectors = _vectors(files, segment)
            vector = read_deletion(files, segment)
            hidden = set(vector.rows[~vector.deleted].tolist())
            labels = table.column("label").to_pylist()
            for row, (name, label) in enumerate(zip(table.column("id").to_pylist(), labels, strict=True)):
                key = int(str(name).removeprefix("item-"))
                if row not in hidden:
                    assert key not in found, f"{key} is in version {version.version} twice"
                    found[key] = Held(segment.state, vectors[row], label)
        return found

    def check(self, version: Version) -> dict[int, Held]:
        """A version holds exactly the items of the gallery as they are; absent are items without an old vector alone.

        Returns:
            What it holds.
        """
        held, items, name = self.held(version), self.items, f"version {version.version}"
        assert not set(held) - set(items), f"{name} holds removed items: {sorted(set(held) - set(items))[:5]}"
        absent = set(items) - set(held)
        assert len(absent) == version.absent, f"{name}: {len(absent)} items are absent, it says {version.absent}"
        lost = [key for key in absent if items[key].has_old and items[key].marker not in self.bad]
        assert not lost, f"{name} lacks {sorted(lost)[:5]}"
        new = [key for key, each in held.items() if each.state == "new"]
        stale = [key for key, each in held.items() if each.state == "stale"]
        assert len(new) == version.new_rows, name
        self._check_vectors(f"{name}, new", held, new, synthetic.new_vectors(self._of(new, "x")))
        if stale:
            expected = self._stale_vectors(version, synthetic.old_vectors(self._of(stale, "old")))
            self._check_vectors(f"{name}, stale", held, stale, expected)
        mislabelled = [key for key, each in held.items() if each.label != items[key].label]
        assert not mislabelled, f"{name} has old labels of {sorted(mislabelled)[:5]}"
        self._new[version.version] = {key: items[key].marker for key in new}
        if version.base is not None and version.base in self._new:
            before, now = self._new[version.base], set(new)
            back = [k for k, m in before.items() if k in items and items[k].marker == m and k not in now]
            assert not back, f"{name}: {sorted(back)[:5]} were new in version {version.base}, and are not any more"
        return held

    def _of(self, keys: list[int], what: str) -> np.ndarray:
        items = self.items
        rows = [getattr(items[key], what) for key in keys]
        return np.stack(rows) if rows else np.empty((0, synthetic.LATENT), np.float32)

    def _check_vectors(self, name: str, held: dict[int, Held], keys: list[int], expected: np.ndarray) -> None:
        if keys:
            found = np.stack([held[key].vector for key in keys])
            wrong = np.abs(found - _normalised(expected)).max(axis=1) > 1e-4
            assert not wrong.any(), f"{name}: vectors of {[keys[i] for i in np.flatnonzero(wrong)[:5]]} are not theirs"

    def _stale_vectors(self, version: Version, old: np.ndarray) -> np.ndarray:
        """What stale items of these old vectors (N, D) are served with."""
        files, state = open_files(self.root), self.state()
        plan: Plan = next(each for each in state.plans if each.plan == version.plan)
        receipt = read_receipt(files, stage_receipt("alignment", plan.alignment))
        assert receipt is not None
        weights, info = (files.get(output.path) for output in receipt.outputs)
        aligned, _ = Alignment.load(weights, json.loads(info))(old, None)
        return aligned if plan.fusion is None else fuse(old, aligned, plan.fusion, "cosine")

    def check_versions(self, since: int) -> None:
        """What the versions from this one on hold is the gallery as it is; nothing that went is returned."""
        state = self.state()
        for version in state.versions[since:]:
            self.check(version)
        if state.serving is not None and state.serving >= since:
            self.check_search()

    def check_search(self) -> None:
        """Searches by the vectors of what went return nothing of it."""
        items = self.items
        gone = [item for key, item in self.gone.items() if key not in items][-50:]
        if gone:
            index = ff.open_index(self.root)
            old = synthetic.old_vectors(np.stack([item.x for item in gone])) if index.needs_old_queries else None
            _, ids = index.search(synthetic.new_vectors(np.stack([item.x for item in gone])), 10, old)
            assert {int(str(each).removeprefix("item-")) for each in ids.ravel()} <= set(items)

    def check_all_new(self, version: Version) -> None:
        """Every item is served with the vector of its payload as it is now, but those that cannot be embedded."""
        held = self.check(version)
        good = {key: item for key, item in self.items.items() if item.marker not in self.bad}
        assert not (stale := [key for key in good if key not in held or held[key].state != "new"]), sorted(stale)[:5]
        keys = [key for key in good if key not in self.deleted]
        index = ff.open_index(self.root, version.version)
        old = synthetic.old_vectors(self._of(keys, "x")) if index.needs_old_queries else None
        _, ids = index.search(synthetic.new_vectors(self._of(keys, "x")), 1, old)
        assert [int(str(each).removeprefix("item-")) for each in ids[:, 0]] == keys
        assert {item.marker for item in good.values()} <= set(self.embedded())

    def delete(self, keys: Iterable[int]) -> None:
        """``fastfill-ray delete``; an id may be in no version yet."""
        self.deleted |= set(keys)
        self._delete(keys, "DELETE")

    def undelete(self, keys: Iterable[int]) -> None:
        """``fastfill-ray undelete`` of ids that were deleted."""
        self.deleted -= set(keys)
        self._delete(keys, "UNDELETE")

    def _delete(self, keys: Iterable[int], kind: Literal["DELETE", "UNDELETE"]) -> None:
        listed = self.folder / "ids.txt"
        listed.write_text("".join(f"item-{key}\n" if self.string_ids else f"{key}\n" for key in keys))
        delete(open_files(self.root), InputStore(), str(listed), kind)
        self.check_deleted()

    def check_deleted(self) -> None:
        """What is served to readers has no deleted item, and all others that its version has."""
        state = self.state()
        version = None if state.serving is None else state.version(state.serving)
        if version is None:
            return
        index, keys = ff.open_index(self.root), list(self.items)[:1]
        old = synthetic.old_vectors(self._of(keys, "x")) if index.needs_old_queries else None
        _, ids = index.search(synthetic.new_vectors(self._of(keys, "x")), version.rows, old)
        names = {int(str(name).removeprefix("item-")) for name in ids[0].tolist() if name not in (-1, None)}
        expected = set(self.held(version)) - self.deleted
        assert names <= expected, f"{sorted(names - expected)[:5]} are returned"
        if self.config().get("index", {}).get("factory", "Flat") == "Flat":  # others do not find all that there is
            assert names == expected, f"{sorted(expected - names)[:5]} are not returned"

    def finish(self, **options: Any) -> ff.BackfillResult:
        """Run to the end, where everything is new, and look at all that this has made."""
        since = len(self.state().versions) if Path(self.root).exists() else 0
        before, now = set(self.embedded()), {item.marker for item in self.items.values()} - self.bad
        result = self.run(**options)
        assert result.finished
        assert set(self.embedded()) == before | now
        self.check_versions(since)
        self.check_all_new(result.state.versions[-1])
        self.check_deleted()
        self.verify()
        return result

    def verify(self) -> None:
        verify(open_files(self.root))

    def written(self) -> dict[str, bytes]:
        """What lies under the root but for what every start writes: signs of life, probes and reports."""
        files = open_files(self.root)
        paths = [path for path in files.list("") if path.partition("/")[0] not in ("drivers", "probe", "reports")]
        return {path: files.get(path) for path in paths}

    def copy(self) -> Living:
        """Another model of the same folder as it is now."""
        other = copy(self)
        other.files = {name: dict(items) for name, items in self.files.items()}
        other.gone, other.sections = dict(self.gone), dict(self.sections)
        other.bad, other.again, other.due = set(self.bad), set(self.again), set(self.due)
        other.deleted = set(self.deleted)
        other._log = None
        other._markers, other._new = dict(self._markers), dict(self._new)
        return other


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _vectors(files: Files, segment: Segment) -> np.ndarray:
    """The vectors (N, E) of a segment, normalised."""
    data = files.get(segment.index.path)
    index = load_index(data, dim=segment.dim, metric="cosine", rows=segment.rows, name=segment.index.path)
    if hasattr(index, "make_direct_map"):
        index.make_direct_map()
    return _normalised(index.reconstruct_n(0, segment.rows))


class _DyingFiles:
    """A store of a process that ends at its write number `left`: before it, or after it where the number is odd."""

    def __init__(self, files: Files, left: int) -> None:
        self._files, self._left, self._after = files, left, left % 2 == 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def put_new(self, path: str, data: bytes) -> bool:
        return self._put(path, data, self._files.put_new)

    def put_data(self, path: str, data: bytes) -> None:
        self._put(path, data, self._files.put_data)

    def _put(self, path: str, data: bytes, put: Callable[[str, bytes], Any]) -> Any:
        if path.startswith("drivers/"):  # written by a thread of its own
            return put(path, data)
        self._left -= 1
        if self._left < 0:
            raise Killed
        if self._left == 0 and not self._after:
            raise Killed
        answer = put(path, data)
        if self._left == 0:
            raise Killed
        return answer


@contextmanager
def _dies(units: int | None, puts: int | None) -> Iterator[None]:
    """Runs in this process end when so many units are embedded, or at such a write."""
    embed_units, left = embed.embed_units, units

    def one_more(*arguments: Any) -> Finish:
        nonlocal left
        if left == 0:
            raise Killed
        left = None if left is None else left - 1
        return embed_units(*arguments)

    def opened(root: str, **options: Any) -> Any:
        files = open_files(root, **options)
        return files if puts is None else _DyingFiles(files, puts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "embed_units", one_more)
        patch.setattr(backfill, "open_files", opened)
        yield


@dataclass
class Begun:
    """A gallery after its first start, again and again: each ``get`` gives the same folder as it was then."""

    living: Living
    kept: Path

    @classmethod
    def of(cls, folder: Path, make: Callable[[Path], Living], begin: Callable[[Living], object]) -> Begun:
        living = make(folder / "here")
        begin(living)
        shutil.copytree(folder / "here", folder / "kept")
        return cls(living, folder / "kept")

    def get(self) -> Living:
        shutil.rmtree(self.living.folder)
        shutil.copytree(self.kept, self.living.folder)
        return self.living.copy()


def small_gallery(folder: Path, **sections: Any) -> Living:
    """249 items in three files, pairs that are few but enough, and a map that is trained in no time."""
    given: dict[str, Any] = {
        "gallery": {"max_removed": 1.0},
        "pairs": {"count": 80, "split": [0.48, 0.26, 0.26]},
        "waves": [0.45, 0.7, 1.0],
        "alignment": {"method": "procrustes"},
        "serving": {"stale_mode": "aligned", "max_regression": 0.02},
    }
    return gallery_of(folder, files=3, rows=83, **{**given, **sections})


def gallery_of(folder: Path, *, files: int = 3, rows: int = 200, string_ids: bool = False, **sections: Any) -> Living:
    """A living gallery of some files."""
    given = {"pairs": {"count": 110}, "waves": [0.4, 0.7, 1.0], **sections}
    living = Living(folder, sections=given, string_ids=string_ids)
    for number in range(files):
        start = number * rows
        items = living.new_items(start, rows)
        living.write(f"part-{number:03d}.parquet", {key * 7 + 3: item for key, item in items.items()})
    return living


def without(items: dict[int, Item], keys: Iterable[int]) -> dict[int, Item]:
    """The items but for those."""
    left_out = set(keys)
    return {key: item for key, item in items.items() if key not in left_out}
