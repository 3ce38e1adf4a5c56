"""A gallery that changes, its plain model, and what a run over it must come to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from fastfill_ray.index.deletion_vector import read_deletion
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Version
from fastfill_ray.log.state import State
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.conftest import in_process


@dataclass
class Item:
    """One item: its latent factors are its payload; no old vector where it is newer than the old model."""

    x: np.ndarray
    has_old: bool = True

    @property
    def marker(self) -> str:
        """How the journal calls it."""
        return synthetic.marker(self.x[0])


@dataclass
class Living:
    """A gallery of files {name: {id: item}}, written as they change, and every payload that was ever due.

    folder: holds the gallery, the output and the journal.
    """

    folder: Path
    files: dict[str, dict[int, Item]] = field(default_factory=dict)
    seed: int = 0
    sections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal.mkdir(parents=True)
        (self.folder / "gallery").mkdir()
        (self.folder / "control.json").write_text(f'{{"journal": "{self.journal}"}}')
        self._random = np.random.default_rng(self.seed)
        self._clock = 1_700_000_000_000_000_000

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

    def new_item(self, *, has_old: bool = True) -> Item:
        """An item with a payload that no other has."""
        centre = synthetic._matrix(3, (synthetic.CLASSES, synthetic.LATENT))[int(self._random.integers(6))] * 1.2
        return Item((centre + self._random.normal(size=synthetic.LATENT)).astype(np.float32), has_old)

    def write(self, name: str, items: dict[int, Item]) -> None:
        """Write a file; a file of no items is removed."""
        path = self.folder / "gallery" / name
        if not items:
            self.files.pop(name, None)
            path.unlink(missing_ok=True)
            return
        self.files[name] = dict(items)
        x = np.stack([item.x for item in items.values()])
        rows = zip(synthetic.old_vectors(x).tolist(), items.values(), strict=True)
        old = [row if item.has_old else None for row, item in rows]
        table = pa.table(
            {
                "id": pa.array(list(items), pa.int64()),
                "x": pa.array(list(x)),
                "label": [f"class-{int(key) % 6}" for key in items],
                "group": [f"group-{int(key) % 3}" for key in items],
                "embedding": pa.array(old, pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, path, row_group_size=64)
        self.touch(name)

    def touch(self, name: str) -> None:
        """As if it had been copied: the same bytes, another time."""
        self._clock += 1_000_000_000
        os.utime(self.folder / "gallery" / name, ns=(self._clock, self._clock))

    def rename(self, name: str, other: str) -> None:
        (self.folder / "gallery" / name).rename(self.folder / "gallery" / other)
        self.files[other] = self.files.pop(name)

    def config(self, **sections: Any) -> dict[str, Any]:
        return synthetic.config(self.folder, **{**self.sections, **sections})

    def run(self, **options: Any) -> ff.BackfillResult:
        """The nightly command, in this process."""
        return in_process(self.config(), **options)

    def embedded(self) -> list[str]:
        """The markers of everything that was embedded, as often as it was."""
        return sorted(line for path in self.journal.iterdir() for line in path.read_text().split())

    def state(self) -> State:
        from fastfill_ray.storage.commit_log import read_state

        return read_state(open_files(self.root))

    def held(self, version: Version) -> dict[int, str]:
        """{id: "new" or "stale"} of what a version serves; every id once."""
        files = open_files(self.root)
        found: dict[int, str] = {}
        for segment in segments_of(files, version):
            ids = pq.read_table(Path(self.root) / segment.ids.path).column("id").to_numpy()
            hidden = read_deletion(files, segment).rows
            for key in np.delete(ids, hidden).tolist():
                assert key not in found, f"{key} is in version {version.version} twice"
                found[key] = segment.state
        return found

    def check(self, version: Version, *, absent: Iterable[int] = ()) -> None:
        """A version holds exactly the items of the gallery, but for those that are absent."""
        held = self.held(version)
        assert set(held) == set(self.items) - set(absent), (
            f"version {version.version}: too many {sorted(set(held) - set(self.items))[:5]}, "
            f"missing {sorted(set(self.items) - set(absent) - set(held))[:5]}"
        )

    def check_all_new(self, version: Version) -> None:
        """Every item is served with the vector of its payload as it is now."""
        self.check(version)
        assert set(self.held(version).values()) == {"new"}
        keys = list(self.items)
        x = np.stack([self.items[key].x for key in keys])
        _, ids = ff.open_index(self.root).search(synthetic.new_vectors(x), k=1)
        assert ids[:, 0].tolist() == keys

    def verify(self) -> None:
        verify(open_files(self.root))


def gallery_of(folder: Path, *, files: int = 3, rows: int = 200, **sections: Any) -> Living:
    """A living gallery of some files."""
    living = Living(folder, sections={"pairs": {"count": 110}, "waves": [0.4, 0.7, 1.0], **sections})
    for number in range(files):
        start = number * rows
        living.write(f"part-{number:03d}.parquet", {(start + i) * 7 + 3: living.new_item() for i in range(rows)})
    return living
