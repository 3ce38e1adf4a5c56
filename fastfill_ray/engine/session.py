"""The connection to Ray, and the one place that sets Ray Data's context."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.data

from fastfill_ray import process
from fastfill_ray.engine import noise
from fastfill_ray.engine.resources import check_reachable

logger = logging.getLogger(__name__)

# Those that use Ray: the executor's, the one that fetches its metadata, the one that iterates over the rows.
_DATA_THREADS = ("StreamingExecutor", "ray-data-metadata-prefetch", "iter_threaded")
_THREADS_END_S = 30
_NO_PROGRESS_S = 4 * 3600  # a pool may wait this long for scarce GPUs before Ray Data calls the run dead
# A pool grows while this share of its actors' places for blocks is taken. Ray Data's own, 1.75, is for actors that have
# a call waiting for each that they make; ours make all they have at once (pool.py), so a full pool is at 1.
_GROWS_FROM = 0.875
# Below any share: an actor that waits for a slow reader would load its model anew a moment later. It goes when nothing
# is left to begin.
_SHRINKS_FROM = -1.0


@contextmanager
def connected(say: Callable[[str], None]) -> Iterator[None]:
    """Ray for a run: the caller's if it is initialised, else RAY_ADDRESS, a running cluster, or a local one.

    Args:
        say: takes a line for people.
    """
    with noise.filtered(say), _connected(say):
        yield


def keep_idle_workers() -> None:
    """Before Ray starts on this machine: it ends idle workers beyond its CPUs after a second, and each wave would then
    import everything anew.
    """
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")


@contextmanager
def _connected(say: Callable[[str], None]) -> Iterator[None]:
    ours = not ray.is_initialized()
    if ours:
        keep_idle_workers()
        address = os.environ.get("RAY_ADDRESS")
        say("starting Ray on this machine ..." if address in (None, "local") else f"connecting to Ray at {address} ...")
        check_reachable(address)
        with signals_kept(), noise.quiet_start():
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        logger.debug("Ray was not connected: connected to %s", ray.get_runtime_context().gcs_address)
    with _data_settings():
        try:
            yield
        except BaseException:
            if ours and process.is_command():
                process.leave_ray_running()
            elif ours:
                shutdown()
            raise
        if ours:
            shutdown()


def shutdown() -> None:
    """``ray.shutdown`` once no thread of Ray Data's uses Ray any more: one that did would end the process, in C++."""
    deadline = time.monotonic() + _THREADS_END_S
    for thread in threading.enumerate():
        if thread.name.startswith(_DATA_THREADS):
            thread.join(max(0.0, deadline - time.monotonic()))
    ray.shutdown()


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put the caller's handlers back, where Ray has put its own: that of Ray Train swallows Ctrl-C ever after."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set any
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:  # it was set by C
                signal.signal(number, handler)


@contextmanager
def _data_settings() -> Iterator[None]:
    """The one place that sets Ray Data's context; the caller's settings are put back."""
    context = ray.data.DataContext.get_current()
    wanted: Mapping[str, Any] = {
        "enable_progress_bars": False,
        "execution_no_progress_timeout_s": _NO_PROGRESS_S,
        # A unit travels as one row and one block: any row is larger than this. With no bound, all that one task reads
        # would be joined to one block.
        "target_max_block_size": 1,
        # A block that fails must fail the run: dropped blocks are dropped items.
        "max_errored_blocks": 0,
        "autoscaling_config": replace(
            context.autoscaling_config,
            actor_pool_util_upscaling_threshold=_GROWS_FROM,
            actor_pool_util_downscaling_threshold=_SHRINKS_FROM,
        ),
    }
    kept = {name: getattr(context, name) for name in wanted if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name in kept:
            setattr(context, name, wanted[name])
        logger.setLevel(logging.WARNING)
        yield
    finally:
        for name, value in kept.items():
            setattr(context, name, value)
        logger.setLevel(level)
