"""fastfill_ray: move a vector gallery to a new embedding model, in waves that pay off first, as one resumable Ray job.

Importing this package loads neither ray nor torch nor faiss; the names below bring in what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfill_ray.backfill import run_backfill as run_backfill
    from fastfill_ray.config import BackfillConfig as BackfillConfig
    from fastfill_ray.config import load_config as load_config
    from fastfill_ray.errors import FastfillError as FastfillError
    from fastfill_ray.export import bake_queries as bake_queries
    from fastfill_ray.index.reader import Index as Index
    from fastfill_ray.index.reader import open_index as open_index
    from fastfill_ray.mapped import map_queries as map_queries
    from fastfill_ray.report.result import BackfillResult as BackfillResult
    from fastfill_ray.simulation import Simulation as Simulation
    from fastfill_ray.simulation import simulate as simulate

_HOMES = {
    "BackfillConfig": "fastfill_ray.config",
    "BackfillResult": "fastfill_ray.report.result",
    "FastfillError": "fastfill_ray.errors",
    "Index": "fastfill_ray.index.reader",
    "Simulation": "fastfill_ray.simulation",
    "bake_queries": "fastfill_ray.export",
    "load_config": "fastfill_ray.config",
    "map_queries": "fastfill_ray.mapped",
    "open_index": "fastfill_ray.index.reader",
    "run_backfill": "fastfill_ray.backfill",
    "simulate": "fastfill_ray.simulation",
}
__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastfill_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
