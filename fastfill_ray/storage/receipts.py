"""Receipts as files: put once, read back typed. What has one is done; what has none is done again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping, Set
from typing import Any

from pydantic import Field

from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.log.records import FileRef
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.paths import parse_unit_receipt, unit_receipt
from fastfill_ray.storage.sealed import seal_file, unseal_file
from fastfill_ray.types import Model

logger = logging.getLogger(__name__)


class Quarantined(Model):
    """One row that could not be processed. ``id`` is null where the id itself is what is wrong."""

    id: int | str | None
    row: int = Field(ge=0, description="row in its gallery or query file")
    reason: str


class Receipt(Model):
    """Proof that one unit of work is durable. Rows in = rows + quarantined, checked by the worker that wrote it."""

    unit: str
    outputs: tuple[FileRef, ...] = ()
    rows: int = Field(ge=0)
    ids_digest: str = Field(default="", description="order-free digest of the ids of `rows`")
    quarantined: tuple[Quarantined, ...] = ()
    seconds: float = Field(default=0.0, ge=0, description="time spent in the worker")
    details: dict[str, Any] = Field(default_factory=dict)


class Receipts(MutableMapping[str, Receipt]):
    """{unit: receipt} of many units, each kept as its JSON: a fifth of what the objects take, and a run of a billion
    items has some hundred thousand of them. What comes out is made anew each time.
    """

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}

    def __getitem__(self, unit: str) -> Receipt:
        return Receipt.model_validate_json(self._packed[unit])

    def __setitem__(self, unit: str, receipt: Receipt) -> None:
        self._packed[unit] = receipt.model_dump_json(exclude_defaults=True).encode()

    def __delitem__(self, unit: str) -> None:
        del self._packed[unit]

    def __contains__(self, unit: object) -> bool:
        return unit in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def copy(self) -> Receipts:
        """Another one of the same receipts."""
        other = Receipts()
        other._packed.update(self._packed)
        return other


def put_receipt(files: Files, path: str, receipt: Receipt) -> Receipt:
    """Make a receipt durable. The first one wins: a twin's is returned instead."""
    if files.put_new(path, seal_file(path, receipt)):
        return receipt
    logger.debug("%s/%s was there first: adopted", files.root, path)
    return unseal_file(path, files.get(path), Receipt)


def read_receipt(files: Files, path: str) -> Receipt | None:
    """The receipt at `path`, None if there is none.

    Raises:
        CorruptFile: what is there is not a receipt.
    """
    try:
        return unseal_file(path, files.get(path), Receipt)
    except FileMissing:
        return None


def find_done(files: Files, folder: str) -> set[str]:
    """The units of a folder that have a receipt; none is read."""
    return {unit for path in files.list(folder) if (unit := parse_unit_receipt(path)) is not None}


def find_receipts(files: Files, folder: str, among: Set[str] | None = None) -> Receipts:
    """The units of a folder that are done: {unit: receipt}.

    Args:
        among: only these.

    Raises:
        CorruptFile: names every damaged one.
    """
    done = find_done(files, folder)
    units = {unit_receipt(folder, unit): unit for unit in sorted(done if among is None else done & among)}
    found = Receipts()
    damaged: list[CorruptFile] = []
    for path, data in zip(units, read_ahead(files.get, units), strict=True):
        try:
            found[units[path]] = unseal_file(path, data, Receipt)
        except CorruptFile as error:
            damaged.append(error)
    if damaged:
        others = f" And {len(damaged) - 1} more receipts in {folder}." if len(damaged) > 1 else ""
        raise CorruptFile(f"{damaged[0]}{others}", *(path for error in damaged for path in error.paths))
    return found
