"""What the next start of the same command would do, as values. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fastfill_ray.log.state import State
from fastfill_ray.types import Model

# nothing: all is done. go on: with the plan that there is. begin: the first plan. follow: a plan in the order of the
# one before. order anew: a plan with pairs, map and order of its own.
Action = Literal["nothing", "go on", "begin", "follow", "order anew"]


class FileChanges(Model):
    """The gallery's files against those of the plan before, by path, size and tag."""

    added: int
    changed: int
    gone: int
    same: int


class ItemChanges(Model):
    """As ``log.records.Changes``. changed: None where nothing that is served is compared."""

    added: int
    changed: int | None
    removed: int


class Work(Model):
    """The items of the plan, by where their new vectors are."""

    served: int = Field(description="in a version that there is, for the item as it is now")
    known: int = Field(description="under the root, but in no such version yet: nothing is embedded for them")
    due: int = Field(description="nowhere: embedded by a run that goes to its end with waves that end at 1")


class Preview(Model):
    """What the next start would do.

    action: None where it would be refused before that is known. reason: why the order is made anew. publishes: a
    version that is put in front of users first. error: what it would end with, and its exit code. files, changes:
    against the plan that the served version is of; None where there is none, or nothing has changed. items: of the
    gallery. drivers: that are at work now.
    """

    action: Action | None = None
    reason: str = ""
    publishes: int | None = None
    error: str | None = None
    exit_code: int = 0
    files: FileChanges | None = None
    changes: ItemChanges | None = None
    items: int | None = None
    work: Work | None = None
    drivers: tuple[str, ...] = ()


class Serving(Model):
    """What is served now. stale, absent: items of the version that is served, None without one."""

    version: int | None
    stale: int | None
    absent: int | None


def serving(state: State) -> Serving:
    """What a state says of what is served."""
    version = None if state.serving is None else state.version(state.serving)
    if version is None:
        return Serving(version=None, stale=None, absent=None)
    return Serving(version=version.version, stale=version.stale_rows, absent=version.absent)
