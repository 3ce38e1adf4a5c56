"""The envelope around a record: number, chain, transaction id, epoch, checksum."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, ValidationError

from fastfill_ray.errors import CorruptFile, RefusedError
from fastfill_ray.log.records import FORMAT, Body
from fastfill_ray.types import Model, canonical

_RESTORE = "Restore it from a copy of the log."


class Record(Model):
    """The envelope. ``sha256`` covers the canonical JSON of everything else in it, ``prev_sha256`` the bytes before."""

    seq: int = Field(ge=0)
    prev_sha256: str
    txn: str = Field(description="fixed before the first attempt to write, so that a lost answer can be resolved")
    epoch: int = Field(ge=0)
    created: str = Field(description="UTC time, ISO 8601; for people, never compared")
    body: Body
    sha256: str


def seal(body: Body, *, seq: int, previous: bytes | None, txn: str, epoch: int, created: str) -> bytes:
    """The bytes of record `seq`, chained to the bytes of the record before (None for the first)."""
    content = {
        "seq": seq,
        "prev_sha256": hashlib.sha256(previous).hexdigest() if previous is not None else "",
        "txn": txn,
        "epoch": epoch,
        "created": created,
        "body": body.model_dump(mode="json"),
    }
    return canonical({**content, "sha256": hashlib.sha256(canonical(content)).hexdigest()})


def unseal(data: bytes, *, seq: int, previous: bytes | None, name: str) -> Record:
    """Parse and check one record.

    Args:
        data: the bytes as read.
        seq: the number in the object's name.
        previous: the bytes of the record before, None to skip the chain check or for the first record.
        name: the object's name, for messages.

    Raises:
        CorruptFile: not JSON, wrong checksum, wrong number, broken chain.
        RefusedError: the root's records have another format, or this one was written by a release that knows more
            kinds or fields.
    """
    try:
        raw = json.loads(data)
        written = raw.pop("sha256")
        found = hashlib.sha256(canonical(raw)).hexdigest()
        raw["sha256"] = written
        whole = canonical(raw) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"{name} is not a log record: {error!r}. {_RESTORE}") from error
    if found != written or not whole:
        raise CorruptFile(f"{name}: sha256 of its content is {found}, the record says {written}. {_RESTORE}")
    _check_format(raw.get("body"), name)
    try:
        record = Record.model_validate(raw)
    except ValidationError as error:
        raise RefusedError(
            f"{name}: not understood by this release ({error}). Use the release that wrote it."
        ) from error
    if record.seq != seq:
        raise CorruptFile(f"{name}: holds record {record.seq}, its name says {seq}. {_RESTORE}")
    if previous is not None and record.prev_sha256 != hashlib.sha256(previous).hexdigest():
        raise CorruptFile(f"{name}: does not follow the record before it (prev_sha256 differs). {_RESTORE}")
    return record


def _check_format(body: Any, name: str) -> None:
    """Refuse a log of another format at its first record, before any record is read in a way that no longer holds.

    INIT itself is looked at before it is validated: its fields may differ between formats, too.
    """
    if isinstance(body, dict) and body.get("kind") == "INIT" and body.get("format") != FORMAT:
        raise RefusedError(
            f"{name}: this output root has record format {body.get('format')}, this release reads and writes format "
            f"{FORMAT}. Choose another output, or use the release that wrote this one."
        )
