"""Old vectors of queries where the old model is gone: mapped from their new ones, as the run itself did.

Legend: Q queries, D old dim, E new dim.
"""

from __future__ import annotations

import json

from numpy.typing import ArrayLike

from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.errors import ConfigError, SpaceMismatch
from fastfill_ray.index.reader import choose_version
from fastfill_ray.log.state import State
from fastfill_ray.retrieval.query_vectors import finite_queries, query_matrix
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import F32


def map_queries(root: str, queries: ArrayLike, *, version: int | None = None, s3_endpoint: str | None = None) -> F32:
    """Old vectors (Q, D) of queries from their new ones (Q, E), of a root with ``serving.old_queries: mapped``.

    ``Index.search`` and ``bake_queries`` take them as `old_queries` while a version is fused.

    Args:
        version: whose map; the published one's by default.

    Raises:
        ConfigError: the version has no such map.
        NotPublished: there is no such version.
        SpaceMismatch: queries of another dim.
        UnusableQueries: queries that are not finite numbers; names the row. It is a ValueError, too.
    """
    files = open_files(root, s3_endpoint=s3_endpoint)
    return mapped_by(files, read_state(files), version, queries)


def mapped_by(files: Files, state: State, version: int | None, queries: ArrayLike) -> F32:
    """The same of a root that is open."""
    chosen = choose_version(files, state, version)
    plan = state.plan_of(chosen)
    if plan.reverse is None or state.init is None:
        raise ConfigError(
            f"{files.root}: version {chosen.version} has no map from new vectors to old ones. Use the old model, or "
            "set serving.old_queries to 'mapped' in the config and run again."
        )
    array = query_matrix("queries", queries, state.init.new_dim)
    if array.shape[1] != state.init.new_dim:
        raise SpaceMismatch(
            f"queries have shape {array.shape}, expected (Q, {state.init.new_dim}): embed them with the new model."
        )
    new = finite_queries("queries", array)
    weights, info = plan.reverse
    back = Alignment.load(get_verified(files, weights), json.loads(get_verified(files, info)))
    mapped, _ = back(new)
    return mapped
