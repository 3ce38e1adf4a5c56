"""What an export is of: asked for, bound to its folder, and named in the manifest once it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from fastfill_ray.errors import RefusedError
from fastfill_ray.log.records import FileRef, Init, Segment, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.waves import wave_middles
from fastfill_ray.retrieval.baking import Baking
from fastfill_ray.stages.export_changes import Held, PortionReader
from fastfill_ray.stages.export_columns import GalleryColumns, same_columns
from fastfill_ray.storage.files import Files, place_of
from fastfill_ray.types import IdType, Metric, Model, fingerprint


class Exported(Model):
    """What an export is of."""

    format: int = 1
    root: str = Field(description="where the root lay then, for people")
    origin: str = Field(
        default="", description="names the version of the root, wherever it lies; empty: of an earlier release"
    )
    version: int = Field(ge=0)
    plan: str
    since: Held | None = Field(default=None, description="what a store holds already; null: nothing")
    num_deletions: int = Field(ge=0, description="records of deletions in the log that were applied")
    deletions: str = Field(description='fingerprint of the deletions in force, "" for none')
    old_space: str
    new_space: str
    id_type: IdType
    metric: Metric = Field(description="that a store is to use on the column `vector`")
    dim: int = Field(gt=0, description="of the column `vector`")
    columns: tuple[str, ...] = Field(default=(), description="of the gallery, beside id, vector and state")
    baking: Baking | None = Field(default=None, description="null: vectors are as the index has them")
    places: tuple[float, ...] = Field(default=(), description="u of each wave's stale items")
    level: float | None = Field(
        default=None, description="mean stale score, uncalibrated, at which the first ten of a query end"
    )


class Manifest(Exported):
    """An export that is whole. `rows` items are in `files`, `new_rows` and `stale_rows` of them sum to it."""

    rows: int = Field(ge=0)
    new_rows: int = Field(ge=0)
    stale_rows: int = Field(ge=0)
    deleted_rows: int = Field(default=0, ge=0, description="ids in `deleted`, which a store is to take out")
    is_exact: bool = Field(description="false: the index keeps vectors compressed, and these are what it keeps")
    files: tuple[FileRef, ...]
    deleted: tuple[FileRef, ...] = ()

    @property
    def held(self) -> Held:
        """What a store has once it has applied this."""
        return Held(version=self.version, num_deletions=self.num_deletions)


@dataclass(frozen=True)
class ExportRequest:
    """version: None for the published one. baked: see ``retrieval.baking``. since: the export that a store holds.
    columns: of the gallery, which every item is to have beside its vector; None for none.
    """

    version: int | None = None
    baked: bool = False
    since: Manifest | None = None
    columns: GalleryColumns | None = None

    @property
    def column_names(self) -> tuple[str, ...]:
        return () if self.columns is None else self.columns.names


def is_same_export(found: Exported, wanted: Exported) -> bool:
    """Whether both are of the same version, under the same deletions, baked alike, since the same version, with the
    same columns.
    """
    first, second = (
        (each.version, each.plan, each.since, each.deletions, each.baking is None, each.columns)
        for each in (found, wanted)
    )
    # Stores of one version can have different scales. The centres of a whole export are not known in `wanted`.
    is_baked_alike = wanted.since is None or found.baking == wanted.baking
    return first == second and is_baked_alike and _is_same_origin(found, wanted.origin, wanted.root)


def _is_same_origin(export: Exported, origin: str, root: str) -> bool:
    """Whether an export is of a version of that origin; of an earlier release, whether it is of the root at that place.

    A root has many paths, through links or once it was moved.
    """
    return export.origin == origin if export.origin else place_of(export.root) == place_of(root)


def _origin(state: State, version: Version) -> str:
    return fingerprint([state.root_id, version.version, version.segments.sha256])


def wanted_export(
    files: Files, reader: PortionReader, state: State, init: Init, version: Version, request: ExportRequest
) -> Exported:
    """What is to be exported; its centres are not known yet."""
    segments, plan = reader.segments(version), state.plan_of(version)
    fused = next((segment for segment in segments if segment.fusion is not None), None)
    if fused is not None and not request.baked and request.since is None:
        raise RefusedError(
            f"{files.root}: version {version.version} is fused: its stale vectors have {fused.dim} dims and its new "
            f"ones {init.new_dim}, so no store can hold both in one column. Export it with --baked."
        )
    if request.since is not None:
        same_columns(request.column_names, request.since.columns)
    places = tuple(float(place) for place in wave_middles(plan.waves, plan.first_share))
    baking = None
    if request.since is not None:
        baking = _rebaked(files, reader, state, version, segments, request.since, places, baked=request.baked)
    elif request.baked:
        needs_old = any(segment.needs_old_queries for segment in segments)
        order = _order_calibration(version, segments, places)
        baking = Baking(metric=init.metric, new_dim=init.new_dim, old_dim=init.old_dim if needs_old else 0, **order)
    return Exported(
        root=files.root,
        origin=_origin(state, version),
        version=version.version,
        plan=version.plan,
        since=None if request.since is None else request.since.held,
        num_deletions=len(state.deletions),
        deletions=reader.deleted(len(state.deletions)).fingerprint,
        old_space=init.old_space,
        new_space=init.new_space,
        id_type=init.id_type,
        metric=init.metric if baking is None else "ip",
        dim=init.new_dim if baking is None else baking.dim,
        columns=request.column_names,
        baking=baking,
        places=places,
        level=None if request.since is None else request.since.level,
    )


def holds_stale(reader: PortionReader, state: State, since: Manifest | None) -> bool:
    """Whether the store that holds `since` has stale items: their scale stays."""
    version = None if since is None else state.version(since.version)
    return version is not None and any(segment.state == "stale" for segment in reader.segments(version))


def _order_calibration(version: Version, segments: Sequence[Segment], places: Sequence[float]) -> dict[str, float]:
    """scale, offset and slope that all stale segments of a version are served with.

    Raises:
        RefusedError: there are no such three.
    """
    stale = [segment for segment in segments if segment.state == "stale"]
    if not stale:
        return {}
    scale = stale[0].calibration.scale
    u = np.array([places[segment.wave] for segment in stale])
    offsets = np.array([segment.calibration.offset for segment in stale])
    first, last = int(u.argmin()), int(u.argmax())
    slope = float((offsets[last] - offsets[first]) / (u[last] - u[first])) if u[last] > u[first] else 0.0
    offset = float(offsets[first] - slope * u[first])
    error = np.abs(offset + slope * u - offsets).max()
    if error > 1e-5 * max(1.0, float(np.abs(offsets).max())) or any(s.calibration.scale != scale for s in stale):
        raise RefusedError(
            f"version {version.version}: its stale segments are not calibrated as one order, so that it cannot be "
            "baked. Export it without --baked, or the next version."
        )
    return {"scale": scale, "offset": offset, "slope": slope}


def _rebaked(
    files: Files,
    reader: PortionReader,
    state: State,
    version: Version,
    segments: Sequence[Segment],
    since: Manifest,
    places: Sequence[float],
    *,
    baked: bool,
) -> Baking | None:
    """The baking of a store that holds `since`, for another version: other queries, the same items.

    The scale is in the stale items and stays, from the first of them on. Where the version has another one, its scores
    at the level at which the first ten of a query end are kept: o' = o + (s' - s) level.

    Raises:
        RefusedError: the same items would not be baked alike.
    """
    before = state.version(since.version)
    full = "Export the version as a whole, without --since, to another folder."
    if (
        before is None
        or before.plan != since.plan
        or before.version in state.expired
        or not _is_same_origin(since, _origin(state, before), files.root)
    ):
        raise RefusedError(
            f"--since: that export is of version {since.version} of {since.root}, which {files.root} does not have, "
            f"or not any more. {full}"
        )
    if reader.deleted(since.num_deletions).fingerprint != since.deletions:
        raise RefusedError(
            f"--since: that export is after {since.num_deletions} deletions, not those of {files.root}. {full}"
        )
    is_stale, was_stale = any(segment.state == "stale" for segment in segments), holds_stale(reader, state, since)
    plan, theirs = state.plan_of(version), state.plan_of(before)
    for name in ("alignment", "fusion"):
        now, then = getattr(plan, name), getattr(theirs, name)
        if is_stale and was_stale and now != then:
            raise RefusedError(f"--since: {name} is {now} in version {version.version}, and {then} in version "
                               f"{before.version}: every stale vector changed. {full}")  # fmt: skip
    if since.baking is None:
        if baked:
            raise RefusedError(f"--since: that export is not baked, --baked is asked for. {full}")
        if any(segment.fusion is not None for segment in segments):
            raise RefusedError(f"--since: version {version.version} is fused, and that export is not baked. {full}")
        return None
    if since.baking.old_dim == 0 and any(segment.needs_old_queries for segment in segments):
        raise RefusedError(
            f"--since: version {version.version} holds old vectors, and that export has no dims for them. {full}"
        )
    order = _order_calibration(version, segments, places)
    if not was_stale:
        return since.baking.model_copy(update=order)
    if is_stale and tuple(places) != since.places:
        raise RefusedError(f"--since: version {version.version} has other waves than version {before.version}. {full}")
    if not order:
        return since.baking
    change = order["scale"] - since.baking.scale
    if change and since.level is None:
        raise RefusedError(f"--since: version {version.version} has another scale, and that export does not say how "
                           f"high scores are. {full}")  # fmt: skip
    offset = order["offset"] + change * (since.level or 0.0)
    return since.baking.model_copy(update={"offset": offset, "slope": order["slope"]})


def in_words(exported: Exported) -> str:
    """Which export it is, for people."""
    since = "" if exported.since is None else f" since version {exported.since.version}"
    baked = "not baked" if exported.baking is None else f"baked with scale {exported.baking.scale:g}"
    columns = f", with {', '.join(exported.columns)}" if exported.columns else ""
    after = f"after {exported.num_deletions} deletions"
    return f"version {exported.version}{since} of {exported.root}, {baked}{columns}, {after}"
