"""What `status` says: of a log, of the drivers at work on it, and of a root that has no record yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastfill_ray.index.deletions import Deleted
from fastfill_ray.log.state import State
from fastfill_ray.report.beginning import Beginning, beginning_words, read_beginning
from fastfill_ray.report.decision import price_words
from fastfill_ray.report.deletions import deletions_json, deletions_note
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.plan_text import plan_text
from fastfill_ray.report.text import lead, version_table, wrapped
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.heartbeat import Beat, describe, find_drivers, is_at_work, progress_words


@dataclass(frozen=True)
class Status:
    """beginning: what is there before the first record; None once there is one. drivers: dead ones, too."""

    root: str
    state: State
    deleted: Deleted
    drivers: tuple[Beat, ...]
    beginning: Beginning | None


def read_status(files: Files) -> Status:
    """How things stand under a root; writes nothing.

    Raises:
        NotPublished: nothing of a run is there.
    """
    state = read_state(files)
    beginning = read_beginning(files) if state.init is None else None
    return Status(files.root, state, Deleted.read(files, state.deletions), tuple(find_drivers(files)), beginning)


def status_text(status: Status, item_s: float | None, first: str = "", price: float | None = None) -> str:
    """For people; the decision is the first line.

    Args:
        item_s, price: see ``plan_text``.
        first: said in its place, where the next start has something else to do.
    """
    state = status.state
    if status.beginning is not None:
        standing = beginning_words(status.root, status.beginning)
    elif state.plan is not None and not state.order_versions:
        standing = plan_text(state, item_s, price)
    else:
        standing = version_table(state)
    drivers = map(progress_words, status.drivers)
    cost = wrapped(price_words(state, price))
    return "\n".join(
        filter(None, [first or lead(state), *drivers, standing, cost, deletions_note(state, status.deleted)])
    )


def status_json(status: Status) -> dict[str, Any]:
    """``report_json``, ``deleted``, ``drivers`` (in words), ``at_work`` (the same as values), ``beginning``."""
    return {
        **report_json(status.state),
        "deleted": deletions_json(status.state, status.deleted),
        "drivers": [describe(beat) for beat in status.drivers],
        "at_work": [
            {**beat.model_dump(mode="json", exclude={"process", "beats"}), "is_at_work": is_at_work(beat)}
            for beat in status.drivers
        ],
        "beginning": None if status.beginning is None else status.beginning.model_dump(mode="json"),
    }
