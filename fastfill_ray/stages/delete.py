"""Ids deleted from a root, and undeleted: one file and one record, beside a driver that may be at work.

Costs depend on the ids that are given, not on the items of the root: no version is read, so it is not known which of
the ids it holds.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pyarrow as pa

from fastfill_ray.errors import NotPublished, RefusedError
from fastfill_ray.index.deletions import write_ids
from fastfill_ray.inputs.id_list import read_id_list
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import Delete, Undelete
from fastfill_ray.log.state import State
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import Files

Kind = Literal["DELETE", "UNDELETE"]


@dataclass(frozen=True)
class Recorded:
    """What became of a request: how many distinct ids it named, and the record's number; None: no id, no record."""

    kind: Kind
    ids: int
    record: int | None


def delete(files: Files, store: InputStore, path: str, kind: Kind = "DELETE") -> Recorded:
    """Append a DELETE, or an UNDELETE, of the ids that are listed at `path`.

    An id that no version holds is kept: it stays deleted should it come later.

    Args:
        path: see ``inputs.id_list``.

    Raises:
        NotPublished: there is no log here.
        RefusedError: an UNDELETE where nothing was ever deleted.
        InputError: an id cannot be read.
        CommitStateUnknown: it was not learnt whether the record landed. The same call again does no harm.
    """
    log = Log(files)
    state = log.read()
    if state.init is None:
        raise NotPublished(f"{files.root}: there is no log here, so nothing to delete from. Mend the path.")
    if kind == "UNDELETE" and not state.deletions:
        raise RefusedError(f"{files.root}: nothing was ever deleted here, so there is nothing to undelete.")
    ids = read_id_list(store, path, state.init.id_type, _id_column(state))
    if not len(ids):
        return Recorded(kind, 0, None)
    state = log.append_deletion(_maker(files, ids, kind))
    return Recorded(kind, len(ids), state.next_seq - 1)


def _maker(files: Files, ids: pa.Array, kind: Kind) -> Callable[[State], Delete | Undelete]:
    """The record that fits a state: its ids are hashed again if another first DELETE has chosen the salt meanwhile."""
    own_salt = secrets.token_hex(16)
    write = cache(lambda salt: write_ids(files, ids, salt))
    of_kind = Delete if kind == "DELETE" else Undelete

    def make(state: State) -> Delete | Undelete:
        salt = state.salt or own_salt
        return of_kind(ids=write(salt), rows=len(ids), salt=salt)

    return make


def _id_column(state: State) -> str:
    """As the gallery of the newest plan calls it."""
    settings = {} if state.plan is None else state.plan.settings
    return str(settings.get("gallery", {}).get("id_column", "id"))
