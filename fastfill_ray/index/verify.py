"""Everything a version names, read again: checksums, rows, and every id exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fastfill_ray.errors import CorruptFile, FileMissing, NotPublished
from fastfill_ray.index.segment import load_index, segment_dim
from fastfill_ray.log.records import Init, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.storage.arrow import read_table
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import get_verified


@dataclass(frozen=True)
class Verified:
    """One version that is whole: its number, its segments, its ids."""

    version: int
    segments: int
    rows: int


def verify(files: Files, version: int | None = None) -> list[Verified]:
    """Check the log and one version, or all that are not expired.

    Raises:
        CorruptFile, FileMissing: names the first object that is damaged or gone, and says which versions are whole.
        NotPublished: no log, no such version, or it is expired.
    """
    state = read_state(files)
    if state.init is None:
        raise NotPublished(f"{files.root}: there is no log here, so nothing to verify. Mend the path.")
    versions = [v for v in state.versions if v.version not in state.expired and version in (None, v.version)]
    if version is not None and not versions:
        there = ", ".join(str(v.version) for v in state.versions if v.version not in state.expired) or "none"
        raise NotPublished(f"{files.root}: there is no version {version}; live versions: {there}")
    whole: list[Verified] = []
    damage: dict[int, CorruptFile | FileMissing] = {}
    for each in versions:
        try:
            whole.append(_verify_version(files, state.init, state, each))
        except (CorruptFile, FileMissing) as error:
            damage[each.version] = error
    if damage:
        first = next(iter(damage.values()))
        intact = ", ".join(str(checked.version) for checked in whole) or "none"
        damaged = ", ".join(map(str, damage))
        raise type(first)(f"{str(first).rstrip('.')}. Damaged versions: {damaged}; whole: {intact}.", *first.paths)
    return whole


def _verify_version(files: Files, init: Init, state: State, version: Version) -> Verified:
    seen: set[int | str] = set()
    plan = next(plan for plan in state.plans if plan.plan == version.plan)
    for segment in version.segments:
        if segment.dim != (bound := segment_dim(segment, init)):
            raise CorruptFile(f"{segment.index.path}: recorded with dim {segment.dim}, its space has {bound}")
        if segment.state == "stale" and segment.fusion != plan.fusion:
            raise CorruptFile(f"{segment.index.path}: fused with {segment.fusion}, plan {plan.plan} says {plan.fusion}")
        data = get_verified(files, segment.index)
        load_index(data, dim=segment.dim, metric=init.metric, rows=segment.rows, name=segment.index.path)
        table = read_table(get_verified(files, segment.ids), name=segment.ids.path, columns=["id"])
        ids = table.column("id").to_pylist()
        if len(ids) != segment.rows or ids_digest(ids) != segment.ids_digest:
            raise CorruptFile(
                f"{segment.ids.path}: {len(ids)} ids, digest {ids_digest(ids)}; recorded are {segment.rows}, "
                f"{segment.ids_digest}"
            )
        repeated = [item for item, count in Counter(ids).items() if count > 1 or item in seen]
        if repeated:
            raise CorruptFile(f"{segment.ids.path}: id {repeated[0]!r} is in version {version.version} twice")
        seen.update(ids)
    if len(seen) != version.rows:
        raise CorruptFile(f"version {version.version}: {len(seen)} ids, the record says {version.rows}")
    if version.rows + version.absent != plan.rows or (version.absent == 0 and version.ids_digest != plan.ids_digest):
        raise CorruptFile(
            f"version {version.version}: {version.rows} ids (digest {version.ids_digest}) and {version.absent} absent; "
            f"plan {plan.plan} has {plan.rows} (digest {plan.ids_digest})"
        )
    return Verified(version.version, len(version.segments), len(seen))
