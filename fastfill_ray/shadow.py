"""Two versions asked the same queries, as `fastfill-ray shadow` does it: before users are. Without Ray.

Legend: Q queries, D old dim, E new dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.embedders.protocol import embed_rows, load_embedder
from fastfill_ray.errors import ConfigError, InputError, NotPublished
from fastfill_ray.index.reader import Index, choose_version
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.query_set import QuerySet, read_query_set
from fastfill_ray.inputs.table import Column
from fastfill_ray.log.records import Init
from fastfill_ray.log.state import State
from fastfill_ray.report.hits import Hit, shown
from fastfill_ray.report.shadow import Comparison, Example, Latency, Taken
from fastfill_ray.retrieval.flips import flips
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.retrieval.overlap import overlap, reciprocal_ranks, same_first
from fastfill_ray.stages.lookup import payload_of
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.types import F32, F64, I64

K = 10
# The most asked ones: more of them make no interval much narrower.
MAX_QUERIES = 1_000
EXAMPLES = 5
_VECTORS, _OLD_VECTORS = "--vector-column", "--old-vector-column"

Say = Callable[[str], None]


@dataclass(frozen=True)
class ShadowRequest:
    """The command line. vector_column, old_vector_column: of the query file; None: the queries are embedded."""

    root: str
    s3_endpoint: str | None
    queries: str
    versions: tuple[int, int]
    vector_column: str | None
    old_vector_column: str | None
    config: str | None


@dataclass(frozen=True)
class _Answers:
    """What one version answered: per query its hits, and the seconds (Q,) that they took."""

    hits: list[list[Hit]]
    seconds: F64

    @property
    def ids(self) -> list[list[int | str]]:
        return [[hit.id for hit in hits] for hits in self.hits]

    @property
    def latency(self) -> Latency:
        median, p95 = 1000 * np.quantile(self.seconds, [0.5, 0.95])
        return Latency(float(median), float(p95))


def shadow(request: ShadowRequest, say: Say) -> Comparison:
    """Ask two versions the most asked queries of a file, one query at a time.

    One version is in memory at a time.

    Args:
        say: told what is waited for.

    Raises:
        FastfillError: the request makes no sense, a version is not there, or a file is damaged or cannot be used.
    """
    if len(set(request.versions)) < 2:
        raise ConfigError(f"--versions {request.versions[0]},{request.versions[1]}: two different ones are expected")
    config = None if request.config is None else load_config(request.config)
    files = open_files(request.root, s3_endpoint=request.s3_endpoint)
    state = read_state(files)
    if (init := state.init) is None:
        raise NotPublished(f"{files.root}: there is no log here, so no version either. Mend the path.")
    versions = [choose_version(files, state, number) for number in request.versions]
    needs_old = any(segment.needs_old_queries for version in versions for segment in segments_of(files, version))
    queries = _read(request, config, init, needs_old)
    mapping = next((v.version for v in versions if state.plan_of(v).reverse is not None), None) if needs_old else None
    new, old, unusable = _vectors(request, config, init, queries, needs_old and mapping is None, say)
    if mapping is not None:
        from fastfill_ray.mapped import mapped_by  # it brings in torch, which few searches need

        old = mapped_by(files, state, mapping, new)
    for query, reason in sorted(unusable.items())[:1]:
        say(f"{len(unusable):,} of {len(queries.rows):,} queries are left out; {queries.rows[query]}: {reason}")
    kept = np.array([query for query in range(len(queries.rows)) if query not in unusable], np.int64)
    if len(kept) == 0:
        raise InputError(f"--queries {request.queries}: no query has a vector; see above")
    before, now = (
        _ask(files, state, number, new[kept], None if old is None else old[kept], say) for number in request.versions
    )
    return _compare(request, config, (files, state), queries, kept, (before, now), say)


def _columns(request: ShadowRequest, config: BackfillConfig | None) -> tuple[Column | None, Column | None]:
    """The columns of new and of old vectors: of the command line, or of the config where the file has them."""
    given = None if config is None else config.queries
    stated = None if given is None else given.vector_dtype

    def column(key: str, wanted: str | None, of_config: str | None) -> Column | None:
        name = wanted or of_config
        return None if name is None else Column(key, name, "vector", stated, optional=wanted is None)

    return (
        column(_VECTORS, request.vector_column, given.new_vector_column if given else None),
        column(_OLD_VECTORS, request.old_vector_column, given.old_vector_column if given else None),
    )


def _read(request: ShadowRequest, config: BackfillConfig | None, init: Init, needs_old: bool) -> QuerySet:
    """The queries, with those of the vectors that are in the file."""
    if request.vector_column is None and config is None:
        raise ConfigError(
            f"--queries needs --config, whose new model embeds them, or {_VECTORS}, the column of their vectors"
        )
    new, old = _columns(request, config)
    dims = {column.name: dim for column, dim in ((new, init.new_dim), (old, init.old_dim)) if column is not None}
    columns = [column for column in (new, old if needs_old else None) if column is not None]
    store = InputStore(request.s3_endpoint)
    if config is not None:
        # Where all vectors are in the file, the payload is for people only.
        is_shown_only = request.vector_column is not None and (request.old_vector_column is not None or not needs_old)
        payload = (config.queries or config.gallery).payload_columns
        columns += [
            Column(f"--queries, payload {name!r} of --config", name, optional=is_shown_only) for name in payload
        ]
        store = InputStore(config.storage.s3_endpoint, config.storage.anonymous)
    return read_query_set(
        store, request.queries, columns, dims, id_type=init.id_type, metric=init.metric, limit=MAX_QUERIES
    )


def _vectors(
    request: ShadowRequest,
    config: BackfillConfig | None,
    init: Init,
    queries: QuerySet,
    needs_old: bool,
    say: Say,
) -> tuple[F32, F32 | None, dict[int, str]]:
    """New (Q, E) and old (Q, D) vectors, out of the file or embedded, and {query: reason} of those that have none."""
    unusable, (new_column, old_column) = dict(queries.unusable), _columns(request, config)
    old_embedder = None if config is None else config.old_model.embedder
    new, old = (None if each is None else queries.vectors.get(each.name) for each in (new_column, old_column))
    if needs_old and old is None and old_embedder is None:  # before the new model is waited for
        raise ConfigError(
            "a version is fused: it is searched with the queries' old vectors, too. Set old_model.embedder in "
            f"--config, or give the file a column of them, of {init.old_dim} dims, and name it with {_OLD_VECTORS}"
        )
    if new is None:
        assert config is not None, "without one the column is not optional"
        model = config.new_model
        new = _embed(config, model.embedder, model.kwargs, init.new_dim, queries, unusable, say)
    if not needs_old:
        return new, None, unusable
    if old is None:
        assert config is not None  # it was refused above
        assert old_embedder is not None
        old = _embed(config, old_embedder, config.old_model.kwargs, init.old_dim, queries, unusable, say)
    return new, old, unusable


def _embed(
    config: BackfillConfig,
    spec: str,
    kwargs: Mapping[str, Any],
    dim: int,
    queries: QuerySet,
    unusable: dict[int, str],
    say: Say,
) -> F32:
    """Vectors (Q, dim), zeros where there is none; `unusable` is told why."""
    count, metric, size = len(queries.rows), config.new_model.metric, config.new_model.batch_size
    say(f"embedding {count:,} queries with {spec} ...")
    embedder, vectors = load_embedder(spec, kwargs), np.zeros((count, dim), np.float32)
    usable = np.array([query for query in range(count) if query not in unusable], np.int64)
    for first in range(0, len(usable), size):
        rows = usable[first : first + size]
        batch = {name: [values[row] for row in rows] for name, values in queries.payload.items()}
        vectors[rows], faults = embed_rows(embedder, batch, "query", dim, metric=metric)
        unusable.update({int(rows[at]): reason for at, reason in faults.items()})
    return vectors


def _ask(files: Files, state: State, number: int, new: F32, old: F32 | None, say: Say) -> _Answers:
    say(f"asking version {number} ...")
    index = Index(files, state, number)
    hits, seconds = [], []
    index.search(new[:1], K, None if old is None else old[:1])  # the first search of an index takes longer
    for query in range(len(new)):
        one = slice(query, query + 1)
        start = time.perf_counter()
        scores, ids = index.search(new[one], K, None if old is None else old[one])
        seconds.append(time.perf_counter() - start)
        pairs = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        hits.append([Hit(item, score) for item, score in pairs if np.isfinite(score)])
    return _Answers(hits, np.array(seconds))


def _compare(
    request: ShadowRequest,
    config: BackfillConfig | None,
    root: tuple[Files, State],
    queries: QuerySet,
    kept: I64,
    answers: tuple[_Answers, _Answers],
    say: Say,
) -> Comparison:
    """The figures and the examples. kept: (Q,) the queries that were asked."""
    before, now = answers
    traffic, taken = queries.traffic[kept], [queries.taken[query] for query in kept.tolist()]
    shared, same = overlap(now.ids, before.ids), same_first(now.ids, before.ids)
    ranks = [reciprocal_ranks(each.ids, taken) for each in answers]
    loss = np.nan_to_num(ranks[0] - ranks[1])  # a query of which nothing was taken has none
    # Where users lose most, then where most is other than it was.
    worst_first = np.lexsort((-traffic, shared, -loss * traffic))
    changed = [query for query in worst_first.tolist() if not same[query]]
    examples = [
        Example(
            query=_query_text(queries, int(kept[query])),
            row=queries.rows[kept[query]],
            traffic=float(traffic[query]),
            overlap=float(shared[query]),
            hits=(before.hits[query], now.hits[query]),
        )
        for query in changed[:EXAMPLES]
    ]
    payload = {} if config is None else _payload(config, root, request.versions, examples, say)
    judged = Taken(
        mrr=(mean_interval(ranks[0], weights=traffic), mean_interval(ranks[1], weights=traffic)),
        flips=flips(ranks[1], ranks[0], weights=traffic),
    )
    return Comparison(
        versions=request.versions,
        queries=len(kept),
        dropped=len(queries.rows) - len(kept),
        is_weighed=bool((traffic != traffic[0]).any()),
        covered=float(traffic.sum() / queries.all_traffic),
        k=K,
        overlap=mean_interval(shared, weights=traffic),
        same_first=mean_interval(same, weights=traffic),
        taken=judged if any(taken) else None,
        latency=(before.latency, now.latency),
        changed=len(changed),
        examples=tuple(examples),
        columns=config.gallery.payload_columns if config is not None and payload else (),
        payload=payload,
    )


def _query_text(queries: QuerySet, query: int) -> str:
    return "  ".join(shown(values[query]) for values in queries.payload.values()) or "query"


def _payload(
    config: BackfillConfig, root: tuple[Files, State], versions: tuple[int, int], examples: list[Example], say: Say
) -> dict[int | str, Any]:
    """{id: payload columns' values} of the examples' hits, by the version that returned them; the later one first."""
    files, state = root
    wanted: dict[str, tuple[int, dict[int | str, None]]] = {}  # of each snapshot: a version, and ids
    for number, side in ((versions[1], 1), (versions[0], 0)):
        snapshot = state.plan_of(choose_version(files, state, number)).snapshot
        _, ids = wanted.setdefault(snapshot, (number, {}))
        ids |= dict.fromkeys(hit.id for example in examples for hit in example.hits[side])
    values: dict[int | str, Any] = {}
    notes: dict[str, None] = {}
    for number, ids in wanted.values():
        missing = [each for each in ids if each not in values]
        values |= payload_of(files, state, config, number, missing, lambda note: notes.update({note: None})).values
    for note in notes:
        say(note)
    return values
