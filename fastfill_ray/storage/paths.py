"""The one place that builds and parses paths under the output root. Unknown names are left alone by everyone."""

from __future__ import annotations

import re
from typing import Literal

from fastfill_ray.types import check_path

Stage = Literal["ledger", "changes", "sample", "pairs", "alignment", "choice", "scores", "evaluation"]
LOG = "log"
# What is looked up when a plan is made, and follows from receipts and snapshots.
DERIVED = frozenset({"known", "compared"})
DRIVERS = "drivers"
HOOK = "hooks/on_publish.json"
REPORT_HTML = "reports/report.html"
REPORT_METRICS = "reports/metrics.json"
_RECORD = re.compile(r"^log/(\d{20})\.json$")
PROBE = "probe"
_PROBE = re.compile(r"^probe/(\d{10,12})-[0-9a-f]{32}$")
_UNIT_OUTPUT = re.compile(r"^(.*)/(?:items\.)?([cs][0-9a-f]{16}|q\d{8})\.[0-9a-f]{16}\.parquet$")
_UNIT_RECEIPT = re.compile(r"^(?:.*/)?([cs][0-9a-f]{16}|q\d{8})\.receipt\.json$")


def record_path(seq: int) -> str:
    """``log/<20 digits>.json``: the only commit point."""
    return f"{LOG}/{seq:020d}.json"


def parse_record(path: str) -> int | None:
    """The record's number, None if `path` is not a record."""
    match = _RECORD.match(path)
    return int(match[1]) if match else None


def driver_path(driver: str) -> str:
    """A driver's sign of life; it alone writes it."""
    return check_path(f"{DRIVERS}/{driver}.json")


def probe_path(time_s: int, unique: str) -> str:
    """What a start tries the store with. It is gone after seconds; its name says since when it should be."""
    return check_path(f"{PROBE}/{time_s:010d}-{unique}")


def parse_probe(path: str) -> int | None:
    """When the object was made, in seconds since 1970; None if `path` is none of ``probe_path``."""
    match = _PROBE.match(path)
    return int(match[1]) if match else None


def snapshot_path(fingerprint: str) -> str:
    """The pinned input files of a plan."""
    return check_path(f"snapshots/{fingerprint}/snapshot.json")


def stage_folder(stage: Stage, fingerprint: str) -> str:
    """Everything one execution of a stage writes; its units' outputs and receipts lie in it."""
    return check_path(f"{stage}/{fingerprint}")


def stage_receipt(stage: Stage, fingerprint: str) -> str:
    """Proof that the stage is done."""
    return f"{stage_folder(stage, fingerprint)}/receipt.json"


def stage_failure(stage: Stage, fingerprint: str) -> str:
    """Why the stage cannot be done, where the run goes on without it."""
    return f"{stage_folder(stage, fingerprint)}/failed.json"


def stage_output(stage: Stage, fingerprint: str, name: str, digest: str) -> str:
    """A stage's own file, content-addressed: ``model.safetensors`` -> ``model.<16 hex digits>.safetensors``."""
    stem, dot, suffix = name.partition(".")
    return check_path(f"{stage_folder(stage, fingerprint)}/{stem}.{digest[:16]}{dot}{suffix}")


def wave_folder(plan: str, wave: int) -> str:
    """The new vectors of one wave, with their units' receipts."""
    return check_path(f"vectors/{plan}/wave={wave:02d}")


def units_path(plan: str, digest: str) -> str:
    """The plan's work list: rows per (chunk, wave)."""
    return check_path(f"vectors/{plan}/units.{digest[:16]}.parquet")


def work_path(plan: str, digest: str) -> str:
    """What a plan says of each row of some chunks."""
    return check_path(f"vectors/{plan}/rows.{digest[:16]}.parquet")


def known_path(digest: str) -> str:
    """One partition of the known vectors."""
    return check_path(f"known/{digest[:16]}.parquet")


def known_list_path(digest: str) -> str:
    """The list of all known vectors' files and partitions."""
    return check_path(f"known/{digest[:16]}.json")


def compared_path(digest: str) -> str:
    """What a comparison of two snapshots found in one partition."""
    return check_path(f"compared/{digest[:16]}.parquet")


def segment_list_path(plan: str, digest: str) -> str:
    """A list of segments, of a version or of those that a plan begins with."""
    return check_path(f"index/{plan}/segments.{digest[:16]}.json")


def is_work_of(plan: str, path: str) -> bool:
    """Whether `path` is one of ``work_path``."""
    return path.startswith(f"vectors/{plan}/rows.")


def chunk_unit(digest: str) -> str:
    """Unit id of a gallery chunk, or of a part of the ledger; digest: 16 hex digits that name its rows."""
    return f"c{digest}"


def hits_unit(digest: str) -> str:
    """Unit id of a part of the gallery that is searched; digest: 16 hex digits that name it."""
    return f"s{digest}"


def query_folder(fingerprint: str, model: Literal["new", "old"]) -> str:
    """The queries' vectors by one model."""
    return f"{stage_folder('evaluation', fingerprint)}/{model}"


def query_unit(unit: int) -> str:
    """Unit id of a slice of the queries."""
    return f"q{unit:08d}"


def unit_output(folder: str, unit: str, digest: str) -> str:
    """What a unit has made, content-addressed by their sha256, so that a racing twin never overwrites other bytes."""
    return check_path(f"{folder}/{unit}.{digest[:16]}.parquet")


def items_output(folder: str, unit: str, digest: str) -> str:
    """What is known of a unit's items beside their vectors; named so that ``c*.parquet`` is the vectors alone."""
    return check_path(f"{folder}/items.{unit}.{digest[:16]}.parquet")


def parse_unit_output(path: str) -> tuple[str, str] | None:
    """(folder, unit) of a name that ``unit_output`` or ``items_output`` built, None for another."""
    match = _UNIT_OUTPUT.match(path)
    return (match[1], match[2]) if match else None


def work_of(path: str) -> str:
    """What the object at `path` is the outcome of: done again, it may have another name. The path, if that is all."""
    found = parse_unit_output(path)
    return path if found is None else "/".join(found)


def unit_receipt(folder: str, unit: str) -> str:
    """The unit's receipt beside its outputs; the first one put wins."""
    return check_path(f"{folder}/{unit}.receipt.json")


def parse_unit_receipt(path: str) -> str | None:
    """The unit whose receipt `path` is, None if it is none."""
    match = _UNIT_RECEIPT.match(path)
    return match[1] if match else None


def receipts_for(path: str) -> tuple[str, ...]:
    """What says that the object at `path` is done: without these, a run makes it again.

    Empty where a record of the log names the object itself, and for names that are not ours.
    """
    folder, _, name = path.rpartition("/")
    top = path.partition("/")[0]
    if name == "snapshot.json" or name == "failed.json" or name.endswith("receipt.json"):
        return (path,)
    if (found := parse_unit_output(path)) is not None:
        # The list of all score files, which names this one, follows from their receipts.
        whole = (f"{folder}/receipt.json",) if top == "scores" else ()
        return (unit_receipt(*found), *whole)
    if top in {"sample", "pairs", "alignment", "choice", "scores"}:
        return (f"{folder}/thresholds.receipt.json" if name.startswith("thresholds.") else f"{folder}/receipt.json",)
    return ()


def set_aside_path(path: str, digest: str) -> str:
    """Where the bytes that were at `path` are kept for people: nothing reads them."""
    return check_path(f"{path}.set-aside-{digest[:16]}")


def deletion_path(digest: str) -> str:
    """A set of ids that a DELETE or UNDELETE names, content-addressed."""
    return check_path(f"deletions/{digest[:16]}.parquet")


def segment_paths(
    plan: str, wave: int, bucket: int, state: Literal["stale", "new"], epoch: int, unique: str
) -> tuple[str, str]:
    """A segment's index and ids; the writer's epoch tells collectors of garbage, `unique` is a fresh uuid."""
    stem = f"index/{plan}/w{wave:02d}-b{bucket:05d}-{state}-e{epoch:08d}-{unique}"
    return check_path(f"{stem}.faiss"), check_path(f"{stem}.ids.parquet")


def deletion_vector_path(
    plan: str, wave: int, bucket: int, state: Literal["stale", "new"], epoch: int, unique: str
) -> str:
    """A deletion vector of a segment; epoch and uuid are this file's own, not those of the segment."""
    return check_path(f"index/{plan}/w{wave:02d}-b{bucket:05d}-{state}-e{epoch:08d}-{unique}.deletion.parquet")


def template_path(plan: str, name: str, unique: str) -> str:
    """A trained, empty index that segments share."""
    return check_path(f"index/{plan}/template-{name}-{unique}.faiss")
