"""The models are built and tried on a few rows before the gallery is read: what fails for every row is said at once.

A row can be bad in itself, and then costs nobody but itself: so only what fails for rows from all over the input is
held against the model or the config.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.config import BackfillConfig, ResourcesConfig, plan_settings, shown_paths
from fastfill_ray.embedders.prepared import Preparer, load_preparer, why_not_prepared
from fastfill_ray.embedders.protocol import Embedder, Role, may_pass
from fastfill_ray.embedders.watchdog import Limited, Watched, build_limit_s, ends_process_after
from fastfill_ray.engine.interface import Attempt
from fastfill_ray.errors import ConfigError, EmbedderError
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.log.records import Plan
from fastfill_ray.stages.asked import asked_files
from fastfill_ray.stages.batches import Space, embed_tables
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Job, Unit, build_model, read_units
from fastfill_ray.stages.prepare import is_prepared, prepare_table, read_payload
from fastfill_ray.stages.quarantine import kind_of
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import parse_unit_receipt
from fastfill_ray.storage.receipts import read_receipt
from fastfill_ray.types import F32

logger = logging.getLogger(__name__)

# Rows of a call, and how many such calls from all over the rows must fail.
_ROWS, _CALLS = 2, 4
# Rows of a call where there is a preparer: what is wrong with a batch may be wrong from its third row on.
_COMPARED = 8
# Of a vector's norm, what the same row may be off when it is prepared: bfloat16, and other batches, make a hundredth.
_NEAR = 0.05
_SHOWN = 3  # different reasons that a message quotes
_LASTING = ("AttributeError", "ImportError", "KeyError", "ModuleNotFoundError", "NameError", "TypeError")


@dataclass(frozen=True)
class _Trial:
    """Calls of one model for one role, the first of which nearly always tells: as many rows as it takes at most."""

    units: tuple[Unit, ...]

    @property
    def model(self) -> str:
        return self.units[0].model

    @property
    def role(self) -> Role:
        return self.units[0].role


def try_models(
    context: Context, job: Job, gallery: Sequence[PinnedFile], config: BackfillConfig, plan: Plan | None
) -> None:
    """Build the models that will embed something new, where the pool will, and embed a few rows.

    Args:
        gallery: the files of the items.
        plan: the last one: what was embedded for it needs no trial.

    Raises:
        ConfigError: a model returns vectors of another dim.
        EmbedderError: a model cannot be built, or fails for rows from all over the gallery or the queries; or its
            preparer fails, makes other vectors, or ends process after process.
    """
    if plan is None and _has_embedded(context.files, job.new_space):
        return
    trials, queries = list[_Trial](), config.queries
    if _differs(plan, config, "new_model", "gallery"):
        trials.append(_Trial(tuple(_units(gallery, "new", "item"))))
    if queries is not None and _differs(plan, config, "new_model", "old_model", "queries"):
        asked = asked_files(context.store, queries)
        if queries.new_vector_column is None:
            trials.append(_Trial(tuple(_units(asked, "new", "query"))))
        if queries.old_vector_column is None and "old" in job.spaces:
            trials.append(_Trial(tuple(_units(asked, "old", "query"))))
    if not trials:
        return
    names = " and ".join(f"the {model} model" for model in dict.fromkeys(each.model for each in trials))
    context.progress.say(f"{names}: built once, to be tried on a few rows")
    prepares = config.resources.prepare_workers != 0
    with context.progress.timed("try the models"):
        answered = context.engine.run_once(partial(_try_all, job, trials, prepares), config.resources)
        if answered is None and prepares:
            _check_preparers(context, job, trials, config.resources)
    if answered is None:
        # Which rows do that is found out by the pool, which then gives those rows a process of their own.
        logger.warning("the process in which the models were tried on a few rows was ended; the run goes on")


def _check_preparers(context: Context, job: Job, trials: Sequence[_Trial], resources: ResourcesConfig) -> None:
    """After a process has ended: raises EmbedderError if preparers end one that they have to themselves, too."""
    if context.engine.run_once(partial(_try_preparers, job, trials), resources) is None:
        specs = {f"{trial.model}_model.embedder": job.spaces[trial.model].embedder for trial in trials}
        whose = " or ".join(f"{key} {spec!r}" for key, spec in specs.items())
        raise EmbedderError(
            f"the `preparer` of {whose} ended each process in which it was tried on a few rows (a crash, no answer in "
            "resources.call_timeout_s, six times that to be built, or no memory). Mend it, or set "
            "resources.prepare_workers to 0."
        )


def _differs(plan: Plan | None, config: BackfillConfig, *parts: str) -> bool:
    """Whether one of these sections is another than in the plan; of the gallery, what the embedder reads."""
    if plan is None:
        return True
    now, then = (
        {**each, "gallery": each["gallery"]["payload_columns"]} for each in (plan_settings(config), plan.settings)
    )
    return any(now.get(part) != then.get(part) for part in parts)


def _has_embedded(files: Files, space: str) -> bool:
    """Whether a start that was ended before its plan has embedded items by the model of that fingerprint."""
    first: dict[str, str] = {}  # receipt of each folder
    for path in files.list("pairs"):
        if parse_unit_receipt(path) is not None:
            first.setdefault(path.rpartition("/")[0], path)
    receipts = (read_receipt(files, path) for path in first.values())
    return any(receipt is not None and receipt.details.get("space") == space for receipt in receipts)


def _units(files: Sequence[PinnedFile], model: Any, role: Role) -> Iterator[Unit]:
    """Rows from all over the files, the first ones first."""
    starts = np.cumsum([0, *(file.rows for file in files)])
    for row in np.unique(np.linspace(0, max(0, starts[-1] - _ROWS), _CALLS).astype(np.int64)).tolist():
        number = int(np.searchsorted(starts, row, side="right")) - 1
        file = files[number]
        start = max(0, min(int(row - starts[number]), file.rows - _ROWS))
        rows = min(_COMPARED, file.rows - start)
        yield Unit(
            unit=f"row {start}", folder="trial", file=file, start=start, length=rows, rows=rows, role=role, model=model
        )


def _try_all(job: Job, trials: Sequence[_Trial], prepares: bool, attempt: Attempt) -> bool:
    """In the process that has what an actor has: True, or what is wrong is raised. prepares: try preparers, too."""
    for name in dict.fromkeys(trial.model for trial in trials):
        try:
            space = job.spaces[name]
            model = Watched(build_model(job, space, attempt.call_timeout_s), attempt.call_timeout_s)
            preparer = _build_preparer(space, attempt.call_timeout_s) if prepares else None
        except EmbedderError as error:
            raise EmbedderError(f"{name}_model: {error}") from None
        for trial in trials:
            if trial.model == name:
                tried = _try(job, trial, model, _ROWS if preparer is None else _COMPARED)
                if preparer is not None:
                    _compare(job, tried, model, preparer)
    return True


def _try_preparers(job: Job, trials: Sequence[_Trial], attempt: Attempt) -> bool:
    """In a process without models. It has other rows than the models had: those may be bad in themselves."""
    for trial in trials:
        preparer = _build_preparer(job.spaces[trial.model], attempt.call_timeout_s)
        if preparer is not None and len(trial.units) > 1:
            [table] = read_units(job, trial.units[-1:])
            prepare_table(table, job.columns(trial.role), preparer, job.spaces[trial.model].batch_size)
    return True


def _build_preparer(space: Space, call_timeout_s: float | None) -> Preparer | None:
    """As ``build_model`` builds the model."""
    with ends_process_after(None if call_timeout_s is None else build_limit_s(call_timeout_s)):
        preparer = load_preparer(space.embedder, space.kwargs)
    return None if preparer is None else Limited(preparer, call_timeout_s)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A unit's rows as they were read, their vectors (n, dim), and the reasons of those that have none."""

    unit: Unit
    table: pa.Table
    vectors: F32
    faults: Mapping[int, str]


def _try(job: Job, trial: _Trial, model: Embedder, num_rows: int) -> _Tried:
    """Raises where no call, of `num_rows` at most, brings a vector that can be used."""
    faults = list[str]()
    waits_s = (0.0, *job.retry_delays_s, *[0.0] * _CALLS)
    seen = _Seen(model)
    for whole, wait_s in zip(trial.units, waits_s, strict=False):
        if faults and all(map(_may_pass, faults)):
            time.sleep(wait_s)
        rows = min(num_rows, whole.rows)
        unit = whole.model_copy(update={"length": rows, "rows": rows})
        [table] = read_units(job, [unit])
        [(vectors, unusable)] = embed_tables([table], job.payload(unit.role), job.spaces[unit.model], unit.role, seen)
        if not unusable and seen.uneven is not None:  # it would embed everything, but row by row
            break
        if len(unusable) < unit.rows:
            return _Tried(unit, table, vectors, unusable)
        faults += unusable.values()
    _check_dim(job, trial, seen)
    raise EmbedderError(_why(job, trial, faults, seen))


def _compare(job: Job, tried: _Tried, model: Embedder, preparer: Preparer) -> None:
    """Raises EmbedderError where rows that were prepared are embedded as others than these are."""
    unit, space = tried.unit, job.spaces[tried.unit.model]
    prepared = prepare_table(tried.table, job.columns(unit.role), preparer, space.batch_size)
    key = f"{unit.model}_model.embedder {space.embedder!r}"
    if not is_prepared(prepared).any():
        batch, _ = read_payload(tried.table, job.payload(unit.role), np.arange(unit.rows))
        raise EmbedderError(
            f"{key}: its `preparer` prepares none of {unit.rows} rows, which the model embeds: "
            f"{why_not_prepared(preparer, batch, unit.role)}. Mend it, or set resources.prepare_workers to 0."
        )
    [(found, later)] = embed_tables(
        [prepared], job.payload(unit.role), space, unit.role, model, retry_delays_s=job.retry_delays_s
    )
    for row in range(unit.rows):
        if row in tried.faults:
            continue
        expected = tried.vectors[row]
        off, norm = (float(np.linalg.norm(each)) for each in (found[row] - expected, expected))
        if row not in later and off <= _NEAR * norm:
            continue
        why = later.get(row, f"the two vectors are {off:.3g} apart, and the first one's norm is {norm:.3g}")
        raise EmbedderError(
            f"{key}: row {row + 1} of {unit.rows} is embedded differently once its `preparer` has prepared them: "
            f"{why}. Mend preparer or embed_prepared, or set resources.prepare_workers to 0."
        )


def _may_pass(reason: str) -> bool:
    """Whether it may be the moment's fault, such as that of a service; a mistake in the code or the config is not."""
    return may_pass(reason) and not any(f" {name}: " in reason for name in _LASTING)


def _check_dim(job: Job, trial: _Trial, seen: _Seen) -> None:
    """Raises ConfigError where all answers hold vectors of one other dim."""
    space = job.spaces[trial.model]
    if len(seen.dims) != 1 or space.dim in seen.dims:
        return
    [dim] = seen.dims
    found = f"the embedder returned vectors of {dim} dims"
    if trial.model == "new":
        raise ConfigError(f"new_model.dim: {found}, new_model.dim is {space.dim}: write dim: {dim}")
    raise ConfigError(
        f"old_model.embedder: {found}, the gallery's old vectors have {space.dim}: name the model, and the kwargs, "
        "that they were made with"
    )


def _why(job: Job, trial: _Trial, faults: Sequence[str], seen: _Seen) -> str:
    key, spec = f"{trial.model}_model.embedder", job.spaces[trial.model].embedder
    if seen.uneven is not None:
        rows, shape = seen.uneven
        return (
            f"{key} {spec!r} returned an array of shape {shape} for {rows} rows of role {trial.role!r}. Return one "
            "vector per row, in the order of the rows: (n, dim)."
        )
    what, read = (
        ("items", "gallery.payload_columns") if trial.role == "item" else ("queries", "queries.payload_columns")
    )
    alike: dict[str, list[str]] = {}
    for fault in faults:
        alike.setdefault(kind_of(fault), []).append(fault)
    reasons = [f"{same[0]} ({len(same)} times)" for same in list(alike.values())[:_SHOWN]]
    paths = list(dict.fromkeys(unit.file.path for unit in trial.units))
    return (
        f"{key} {spec!r}: {len(faults)} of {len(faults)} {what} could not be embedded: {'; '.join(reasons)}. It was "
        f"called with the columns {', '.join(map(repr, job.payload(trial.role)))}. The embedder or the config is "
        f"wrong, not single rows: mend {key}, its kwargs or {read}. Or these columns hold nothing that it can embed: "
        f"look into {shown_paths(paths if len(paths) > 1 else paths[0])}."
    )


class _Seen:
    """An embedder, and the shapes of its answers.

    dims: of the vectors of answers that hold one per row. uneven: (rows, shape) of the first answer that does not.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.dims: set[int] = set()
        self.uneven: tuple[int, tuple[int, ...]] | None = None

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> Any:
        answer = np.asarray(self._embedder(batch, role))
        rows = len(next(iter(batch.values())))
        if answer.ndim == 2 and len(answer) == rows:
            self.dims.add(answer.shape[1])
        elif self.uneven is None:
            self.uneven = rows, answer.shape
        return answer
