"""Ray as this package uses it: connection, settings in one place, bounded task fan-out, errors as they were raised."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.data
from ray.exceptions import RayError

from fastfill_ray import errors
from fastfill_ray.errors import FastfillError

T = TypeVar("T")
R = TypeVar("R")

# Tasks in flight per CPU of the cluster. Tasks ask for no CPU, so that they make progress beside an actor pool that
# holds every core; the bound is what keeps them from flooding a node.
_TASKS_PER_CPU = 1
_PROGRESS_LOGGER = "ray.data._internal.progress"
_NO_PROGRESS_S = 4 * 3600  # a pool may wait this long for scarce GPUs before Ray Data calls the run dead


@contextmanager
def connected() -> Iterator[None]:
    """Ray for a run: the caller's if it is initialised, else RAY_ADDRESS, a running cluster, or a local one."""
    ours = not ray.is_initialized()
    if ours:
        # Our own lines are the progress; Ray's own level stays at warnings unless the user asks for more.
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # A local Ray ends idle workers beyond its CPUs after a second, and each wave would import everything anew.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    with _data_settings():
        try:
            yield
        finally:
            if ours:
                ray.shutdown()


def _not_about_bars(record: logging.LogRecord) -> bool:
    """Ray Data warns at every execution that its bars are off; ours are on."""
    return not record.getMessage().startswith("Progress bars disabled")


@contextmanager
def _data_settings() -> Iterator[None]:
    """The one place that sets Ray Data's context; the caller's settings are put back."""
    context = ray.data.DataContext.get_current()
    wanted: Mapping[str, Any] = {
        "enable_progress_bars": False,
        "execution_no_progress_timeout_s": _NO_PROGRESS_S,
        # A unit of work travels as one block, never cut and never joined.
        "target_max_block_size": None,
        # A block that fails must fail the run: dropped blocks are dropped items.
        "max_errored_blocks": 0,
    }
    kept = {name: getattr(context, name) for name in wanted if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name in kept:
            setattr(context, name, wanted[name])
        logger.setLevel(logging.WARNING)
        logging.getLogger(_PROGRESS_LOGGER).addFilter(_not_about_bars)
        yield
    finally:
        for name, value in kept.items():
            setattr(context, name, value)
        logger.setLevel(level)
        logging.getLogger(_PROGRESS_LOGGER).removeFilter(_not_about_bars)


@contextmanager
def original_errors() -> Iterator[None]:
    """Turn what Ray wraps around an error of ours back into that error."""
    try:
        yield
    except FastfillError:
        raise
    except Exception as error:
        ours = _find_ours(error)
        if ours is None:
            raise
        raise ours from error


def _find_ours(error: BaseException | None, depth: int = 0) -> FastfillError | None:
    if error is None or depth > 8:
        return None
    if isinstance(error, FastfillError) and not isinstance(error, RayError):
        return error
    # Ray keeps what it wraps under several names; Ray Train keeps one error per worker.
    failures = getattr(error, "worker_failures", None) or {}
    links = (
        getattr(error, "cause", None),
        getattr(error, "_base_exc", None),
        error.__cause__,
        error.__context__,
        *failures.values(),
    )
    return next((ours for link in links if (ours := _find_ours(link, depth + 1))), None)


def pack_error(error: FastfillError) -> str:
    """An error as a value, for Ray Data: of an exception in a UDF it hands on only the text, and logs pages of it."""
    return json.dumps([type(error).__name__, str(error)])


def raise_packed(packed: str | None) -> None:
    """Raise what ``pack_error`` packed."""
    if packed is not None:
        name, message = json.loads(packed)
        raise getattr(errors, name)(message)


def _call(function: Callable[[T], R], item: T) -> R:
    return function(item)


def run_tasks(
    function: Callable[[T], R], items: Iterable[T], *, name: str, ordered: bool = False
) -> Iterator[tuple[T, R]]:
    """(item, function(item)) as they finish, as Ray tasks with bounded concurrency; `function` must be idempotent.

    With `ordered` they come in the items' order. Either way no more results exist at a time than tasks in flight.

    Process death is retried by Ray, an exception is not: it comes out as it was raised.
    """
    task: Any = ray.remote(_call).options(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD", name=name)
    shared = ray.put(function)  # with everything it is bound to: serialised once, not once per task
    limit = max(2, int(ray.cluster_resources().get("CPU", 1) * _TASKS_PER_CPU))
    waiting: dict[ray.ObjectRef, T] = {}
    source = iter(items)
    exhausted = False
    with original_errors():
        try:
            while True:
                while not exhausted and len(waiting) < limit:
                    try:
                        item = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    waiting[task.remote(shared, item)] = item
                if not waiting:
                    return
                first = next(iter(waiting))
                done = [first] if ordered else ray.wait(list(waiting), num_returns=1)[0]
                for reference in done:
                    yield waiting.pop(reference), ray.get(reference)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=False)
