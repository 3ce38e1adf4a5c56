"""What a new plan keeps of the log, and the waves that are left to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastfill_ray.log.records import Plan, Version
from fastfill_ray.log.state import State

# Where the gallery lies and how a change of it is seen: neither says which map or order is best.
_OF_THE_GALLERY_ALONE = ("path", "version_column")


@dataclass(frozen=True)
class Kept:
    """What there is when a plan is made.

    base: the version that is served; the plan begins with its segments. plan: that it is of. versions: of that plan,
    in order. follows: whether map, policy, calibration and thresholds are kept, because only the gallery has changed.
    """

    base: Version
    plan: Plan
    versions: tuple[Version, ...]
    follows: bool

    @property
    def is_steady(self) -> bool:
        """Whether nothing that is served is stale: then nothing has to be ordered any more."""
        return self.base.stale_rows == 0

    def is_indexed_as(self, settings: Mapping[str, Any]) -> bool:
        """Whether segments would be made alike now, so that those that are served are kept: the index, and what stands
        beside the ids.
        """
        before, gallery = self.plan.settings["gallery"], settings["gallery"]
        beside = all(before[name] == gallery[name] for name in ("label_column", "group_column"))
        return beside and is_same_item(self.plan, settings) and self.plan.factory == settings["index"]["factory"]

    @property
    def catch_up(self) -> int:
        """The wave of what should be new by now and is not: of changed items, and of late ones. Never 0, the pairs'."""
        if self.is_steady:
            return len(self.plan.waves)
        return max(1, self.versions[-1].wave)

    def version_waves(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """``Plan.version_waves`` of a plan that follows.

        Args:
            rows: to become new per wave (W + 2,); none in waves 1 to ``catch_up`` - 1.
        """
        last = len(self.plan.waves)
        if self.is_steady or not any(rows[1 : last + 1]):
            return (last if self.is_steady else self.base.wave,)
        through = self.catch_up
        later = tuple(wave for wave in range(through + 1, last + 1) if rows[wave])
        return (self.base.wave, *((through,) if rows[through] else ()), *later)


def is_same_item(plan: Plan, settings: Mapping[str, Any]) -> bool:
    """Whether a row of a file that is pinned as before is the same item as for a plan, with the same payload."""
    before, now = plan.settings["gallery"], settings["gallery"]
    return all(before[name] == now[name] for name in ("id_column", "payload_columns"))


def what_is_kept(state: State, settings: Mapping[str, Any], inputs: str) -> Kept | None:
    """What a plan that is made now keeps; None while nothing is published.

    Args:
        settings: of the new plan, as ``Plan.settings``. inputs: as ``Plan.inputs``.
    """
    base = None if state.serving is None else state.version(state.serving)
    if base is None:
        return None
    plan = state.plan_of(base)
    versions = tuple(version for version in state.versions if version.plan == plan.plan)
    now = as_planned(settings, plan)
    follows = plan.inputs == inputs and bound(plan.settings, now) == bound(now, plan.settings)
    return Kept(base, plan, versions, follows)


def as_planned(settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """`settings` with the plan's pairs and waves where they say `auto`, or the very numbers that the plan has: neither
    a gallery that grows nor writing down what `auto` became asks for another order.
    """
    before, same = plan.settings, dict(settings)
    pairs, waves = settings.get("pairs", {}), settings.get("waves")
    if pairs.get("count") in ("auto", plan.num_sampled) and "pairs" in before:
        same["pairs"] = {**pairs, "count": before["pairs"]["count"]}
    if (waves == "auto" or waves == list(plan.waves)) and "waves" in before:
        same["waves"] = before["waves"]
    return same


def bound(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `settings` that a plan which follows has in common with the plan before, whose settings are `others`,
    or the other way round.
    """
    gallery, other = settings.get("gallery", {}), others.get("gallery", {})
    left_out = set(_OF_THE_GALLERY_ALONE)
    if None in (gallery.get("old_vector_column"), other.get("old_vector_column")):
        left_out.add("old_vector_column")  # it is gone, or back
    return {**settings, "gallery": {key: value for key, value in gallery.items() if key not in left_out}}
