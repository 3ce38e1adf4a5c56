"""The folder of an export: ``export.json`` says what it is of, ``parts/`` what is done, ``manifest.json`` that all is.

One folder holds one export. The same command makes again what is damaged or gone, or says what to remove.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from itertools import chain

from fastfill_ray.errors import CorruptFile, FileMissing, RefusedError
from fastfill_ray.log.records import FileRef
from fastfill_ray.stages.export_manifest import Exported, Manifest, in_words, is_same_export
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.paths import unit_receipt
from fastfill_ray.storage.receipts import Receipt, Receipts, find_receipts, put_receipt
from fastfill_ray.storage.sealed import seal_file, unseal_file

REQUEST, MANIFEST = "export.json", "manifest.json"
INDEX, INDEX_IDS = "index.faiss", "ids.parquet"
DATA, DELETED, PARTS = "data", "deleted", "parts"


def read_manifest(target: Files) -> Manifest:
    """The manifest of a finished export.

    Raises:
        FileMissing: there is none, or it is not finished.
        CorruptFile: it is damaged.
    """
    return unseal_file(MANIFEST, target.get(MANIFEST), Manifest)


def finished_export(target: Files, wanted: Exported) -> Manifest | None:
    """The manifest, if it is of the wanted export and all its files are there; nothing of these is read."""
    try:
        manifest = read_manifest(target)
    except (FileMissing, CorruptFile):  # it is written last, so a damaged one is as none
        return None
    is_whole = is_same_export(manifest, wanted) and are_there(target, (*manifest.files, *manifest.deleted))
    return manifest if is_whole else None


def begin_export(target: Files, wanted: Exported, complete: Callable[[Exported], Exported]) -> Exported:
    """What is exported, bound to the folder: a later call goes on with what an earlier one put down.

    Args:
        complete: called where nothing was put down yet; it gives the same for the same.

    Raises:
        RefusedError: the folder holds another export, or nothing says what it holds.
    """
    bound = _bound(target)
    if bound is None:
        exported = complete(wanted)
        if target.put_new(REQUEST, seal_file(REQUEST, exported)):
            return exported
        bound = unseal_file(REQUEST, target.get(REQUEST), Exported)  # another process was first
    if not is_same_export(bound, wanted):
        raise RefusedError(
            f"{target.root}: holds another export, {in_words(bound)}; this one is {in_words(wanted)}. Give --to "
            "another folder, or remove that one."
        )
    return bound


def _bound(target: Files) -> Exported | None:
    """What the folder is bound to: by its request, or by its manifest, which says the same. None: nothing is in it."""
    damaged = False
    try:
        return unseal_file(REQUEST, target.get(REQUEST), Exported)
    except FileMissing:
        pass
    except CorruptFile:
        damaged = True
    try:
        manifest = read_manifest(target)
    except (FileMissing, CorruptFile):
        manifest = None
    if manifest is None and (other := _anything(target)) is not None:
        why = f"{REQUEST} is damaged or something else" if damaged else f"there is no {REQUEST}"
        raise RefusedError(
            f"{target.root}: holds {other}, and {why}: nothing says of which export it is, and a store would load it "
            "as well. Remove what is in the folder, or give --to another one."
        )
    if damaged:
        target.delete(REQUEST)
    if manifest is None:
        return None
    exported = Exported(**manifest.model_dump(include=set(Exported.model_fields)))
    target.put_new(REQUEST, seal_file(REQUEST, exported))
    return exported


def _anything(target: Files) -> str | None:
    """A file that a store would load, that would be taken for a part of an export, or that one would overwrite."""
    listed = (path for folder in (DATA, DELETED, PARTS) for path in target.list(folder))
    overwritten = (name for name in (MANIFEST, INDEX, INDEX_IDS) if target.stat(name) is not None)
    if (path := next(chain(listed, overwritten), None)) is not None:
        return path
    return REQUEST if target.stat(REQUEST) is not None and _is_json(target.get(REQUEST)) else None


def _is_json(data: bytes) -> bool:
    """A request that is cut is none; that of another program is."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def done_parts(target: Files, units: Set[str], say: Callable[[str], None]) -> Receipts:
    """The receipts of the parts whose files are there. What is left of others is taken away: they are made again."""
    while True:
        try:
            found = find_receipts(target, PARTS, units)
            break
        except CorruptFile as error:
            say(f"damaged, made again: {', '.join(error.paths)}")
            for path in error.paths:
                target.delete(path)
    for unit, receipt in list(found.items()):
        if not are_there(target, receipt.outputs):  # somebody may have taken files away, or cut them
            for path in (unit_receipt(PARTS, unit), *(output.path for output in receipt.outputs)):
                target.delete(path)
            del found[unit]
    return found


def put_part(target: Files, receipt: Receipt) -> Receipt:
    """Make a part's receipt durable; of two processes the first wins."""
    return put_receipt(target, unit_receipt(PARTS, receipt.unit), receipt)


def are_there(target: Files, references: Sequence[FileRef]) -> bool:
    """Whether files are there in the size that they were written in; nothing is read."""
    found = read_ahead(target.stat, (each.path for each in references))
    return all(now is not None and now.size == each.size for each, now in zip(references, found, strict=True))
