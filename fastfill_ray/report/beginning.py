"""What lies under a root before the first record is written: a run commits nothing until its plan can be made."""

from __future__ import annotations

from pathlib import Path

from fastfill_ray.errors import NotPublished
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.local import local_path
from fastfill_ray.storage.paths import DRIVERS, Stage, stage_folder
from fastfill_ray.storage.receipts import find_receipts
from fastfill_ray.types import Model

_SHOWN = 3


class Beginning(Model):
    """What a run has done so far. pairs, scored: items with a receipt. maps: that are fitted. is_chosen: whether every
    `auto` is.
    """

    pairs: int
    maps: int
    is_chosen: bool
    scored: int


def read_beginning(files: Files) -> Beginning:
    """What is done under a root without a record.

    Raises:
        NotPublished: nothing of a run is there; says what is.
    """
    listed = {stage: files.list(stage) for stage in ("pairs", "alignment", "choice", "scores")}
    others = (path for folder in ("snapshots", "ledger", "sample", "changes", DRIVERS) for path in files.list(folder))
    if not any(listed.values()) and next(others, None) is None:
        raise NotPublished(_nothing(files))

    def items(stage: Stage) -> int:
        names = sorted({path.split("/")[1] for path in listed[stage]})
        receipts = (find_receipts(files, stage_folder(stage, name)).values() for name in names)
        return sum(receipt.rows for found in receipts for receipt in found)

    def finished(stage: str) -> int:
        return sum(path.endswith("/receipt.json") for path in listed[stage])

    return Beginning(
        pairs=items("pairs"), maps=finished("alignment"), is_chosen=finished("choice") > 0, scored=items("scores")
    )


def beginning_words(root: str, found: Beginning) -> str:
    """What is done, for people."""
    maps = "1 map is" if found.maps == 1 else f"{found.maps} maps are"
    done = [
        (found.pairs, f"{found.pairs:,} items of the sample are embedded"),
        (found.maps, f"{maps} fitted"),
        (found.is_chosen, "map, order and calibration are chosen"),
        (found.scored, f"{found.scored:,} items are scored"),
    ]
    words = "; ".join(text for is_there, text in done if is_there) or "nothing is embedded yet"
    return f"{root}: a run has begun here, and there is no plan yet. So far: {words}. The same command goes on."


def _nothing(files: Files) -> str:
    """What is there instead, and what to do."""
    root, advice = files.root, "Give the folder or prefix that the config calls `output`, or start a run."
    if root.startswith("s3://"):
        return f"{root}: nothing of a run lies under this prefix. {advice}"
    folder = Path(local_path(root))
    if not folder.exists():
        return f"{root}: there is no such folder. {advice}"
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if folder.is_dir() and not there:
        return f"{root}: an empty folder; no run has begun here. {advice}"
    shown = ", ".join(there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "")
    return f"{root}: nothing of a run lies here{f', but {shown}' if shown else ', it is a file'}. {advice}"
