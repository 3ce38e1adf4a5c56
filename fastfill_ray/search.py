"""One search, as `fastfill-ray search` makes it: open, embed, search, and look the hits up. Without Ray."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.embedders.protocol import embed_rows, load_embedder
from fastfill_ray.errors import ConfigError
from fastfill_ray.index.reader import Index, choose_version
from fastfill_ray.report.hits import Hit
from fastfill_ray.stages.lookup import payload_of
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files

# Opening a version that is larger takes a while, which is said before.
_LARGE_BYTES = 1 << 28

Say = Callable[[str], None]


@dataclass(frozen=True)
class SearchRequest:
    """The command line: either vectors, a .npy file, or a text. json: the payload is not looked up."""

    root: str
    s3_endpoint: str | None
    version: int | None
    k: int
    vectors: str | None
    text: str | None
    old_vectors: str | None
    config: str | None
    column: str | None
    json: bool


@dataclass(frozen=True)
class Searched:
    """hits: per query, best first. columns, payload: {id: their values}; empty where the gallery is not at hand."""

    version: int
    hits: list[list[Hit]]
    columns: tuple[str, ...] = ()
    payload: Mapping[int | str, Sequence[object]] = field(default_factory=dict)


def search(request: SearchRequest, say: Say) -> Searched:
    """Search a version.

    Args:
        say: told what is waited for.

    Raises:
        FastfillError: the request makes no sense, nothing is published, or a file is damaged.
    """
    if request.k < 1:
        raise ConfigError(f"-k {request.k}: at least 1 is expected")
    if request.text is not None and request.config is None:
        raise ConfigError("--text needs --config: the model comes from your config, never from the stored index")
    config = None if request.config is None else load_config(request.config)
    files = open_files(request.root, s3_endpoint=request.s3_endpoint)
    state = read_state(files)
    number = state.serving if request.version is None else request.version
    version = None if number is None else state.version(number)
    if version is not None and version.index_bytes >= _LARGE_BYTES:
        say(f"opening version {version.version}, {version.index_bytes / 1e9:.1f} GB ...")
    index = Index(files, state, request.version)
    queries = _queries(request, config, index, say)
    old_queries = None
    if index.needs_old_queries:
        plan = state.plan_of(choose_version(files, state, index.version))
        if plan.reverse is not None and request.old_vectors is None:
            from fastfill_ray.mapped import mapped_by  # it brings in torch, which few searches need

            old_queries = mapped_by(files, state, index.version, queries)
        else:
            old_queries = _old_queries(request, config, index, say)
    try:
        scores, ids = index.search(queries, k=request.k, old_queries=old_queries)
    except ValueError as error:
        raise ConfigError(f"{request.vectors or request.text}: {error}") from None
    hits = [
        [Hit(item, score) for item, score in zip(row, line, strict=True) if np.isfinite(score)]
        for row, line in zip(ids.tolist(), scores.tolist(), strict=True)
    ]
    if config is None or request.json:
        return Searched(index.version, hits)
    by_rank = itertools.chain.from_iterable(itertools.zip_longest(*hits))
    wanted = list(dict.fromkeys(hit.id for hit in by_rank if hit is not None))
    payloads = payload_of(files, state, config, index.version, wanted, say)
    return Searched(index.version, hits, config.gallery.payload_columns if payloads.values else (), payloads.values)


# Queries


def _queries(request: SearchRequest, config: BackfillConfig | None, index: Index, say: Say) -> Any:
    """(Q, E), of the new model."""
    if request.vectors is not None or config is None:
        return _load_vectors("--vectors", request.vectors or "", f"(Q, {index.dim})")
    model = config.new_model
    say(f"loading the new model, {model.embedder} ...")
    return _embed(request, config, model.embedder, model.kwargs, model.dim, model.metric)


def _old_queries(request: SearchRequest, config: BackfillConfig | None, index: Index, say: Say) -> Any:
    """(Q, D), of the old model, for a version that is fused with old vectors."""
    if request.old_vectors is not None:
        return _load_vectors("--old-vectors", request.old_vectors, f"(Q, {index.old_dim})")
    needs = f"version {index.version} is fused: it is searched with the queries' old vectors, too"
    if request.text is None or config is None:
        raise ConfigError(f"{needs}; give them with --old-vectors FILE.npy, a (Q, {index.old_dim}) array")
    model = config.old_model
    if model.embedder is None:
        raise ConfigError(f"{needs}; set old_model.embedder in {request.config}, or give them with --old-vectors")
    say(f"loading the old model, {model.embedder} ...")
    return _embed(request, config, model.embedder, model.kwargs, index.old_dim, index.metric)


def _load_vectors(option: str, path: str, shape: str) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{option} {path}: a .npy array {shape} is expected: {error}") from None


def _embed(
    request: SearchRequest, config: BackfillConfig, spec: str, kwargs: dict[str, Any], dim: int, metric: str
) -> Any:
    batch = {text_column(request.column, config): [request.text]}
    vectors, unusable = embed_rows(load_embedder(spec, kwargs), batch, "query", dim, metric=metric)
    if unusable:
        raise ConfigError(f"--text {request.text!r} cannot be embedded with {spec}: {unusable[0]}")
    return vectors


def text_column(column: str | None, config: BackfillConfig) -> str:
    """The payload column that a text stands for: as the queries have it, or else the items.

    Args:
        column: the one that is asked for; None if there is only one, or one that is called "text".

    Raises:
        ConfigError: there is no such column, or nobody knows which one.
    """
    columns = (config.queries or config.gallery).payload_columns
    if column is not None and column not in (*columns, *config.gallery.payload_columns):
        raise ConfigError(f"--column {column}: the payload columns are {', '.join(columns)}; name one of them")
    if column is None and len(columns) > 1 and "text" not in columns:
        raise ConfigError(f"--text: the payload columns are {', '.join(columns)}; say with --column which one it is")
    return column or (columns[0] if len(columns) == 1 else "text")
