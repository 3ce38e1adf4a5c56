"""What is deleted, for people: how many ids, and how many of them the served version holds, where the log says it."""

from __future__ import annotations

from typing import Any

from fastfill_ray.index.deletions import Deleted
from fastfill_ray.log.state import State


def deletions_json(state: State, deleted: Deleted) -> dict[str, Any]:
    """Keys: ``ids``, those that are deleted; ``in_served``, those of them that the served version holds: null where the
    version was made under other deletions, so that only its ids could tell.
    """
    return {"ids": len(deleted), "in_served": _held(state, deleted)}


def deletions_note(state: State, deleted: Deleted) -> str:
    """One line on what is deleted; empty if nothing is."""
    count = len(deleted)
    if not count:
        return ""
    are = "id is" if count == 1 else "ids are"
    held = _held(state, deleted)
    if held is None:
        return f"{count:,} {are} deleted: searches leave them out, whatever version is opened."
    return f"{count:,} {are} deleted; {held:,} of them {'is' if held == 1 else 'are'} in version {state.serving}."


def _held(state: State, deleted: Deleted) -> int | None:
    version = None if state.serving is None else state.version(state.serving)
    if version is None:
        return None
    if not len(deleted):
        return 0
    return version.deleted if deleted.are_flagged_in(version) else None
