"""Every item scored: one pass over the gallery's chunks, then the thresholds that cut the order into waves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.errors import CorruptFile
from fastfill_ray.inputs.gallery import (
    Source,
    item_labels,
    item_priorities,
    item_weights,
    mapped_columns,
    mapped_vectors,
)
from fastfill_ray.inputs.kinds import read_id_column
from fastfill_ray.inputs.parquet import PinnedFile, Span, in_one_pass, read_spans
from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.demand import DEPTHS
from fastfill_ray.ordering.ids import combine_digests, hash_ids, ids_digest
from fastfill_ray.ordering.policies import LABELLED, LOGGED, ItemColumns, Policy, Reference, priority_of
from fastfill_ray.ordering.proxies import GAIN_DEPTH, Proxies, merge_top
from fastfill_ray.ordering.waves import order_key
from fastfill_ray.retrieval.similarity import match_norms
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.keys import put_pair_keys
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.train import TrainedAlignment, load_alignment
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import overlapped
from fastfill_ray.storage.paths import stage_folder, stage_output, stage_receipt, unit_output, unit_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, Receipts, find_receipts, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import F32, U64, Model, fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """What turns a chunk's columns into priorities: picklable, the same on every worker.

    norm: of new vectors, that aligned ones are brought to; None where they keep their own. reference: what the policy
    knows of the train pairs and of the query log. classifier: digest of the new model's own where the policy reads it,
    else "". metric_looked_at: of the objective, as deep as which orders by demand look. log: names what of a query log
    the scores depend on, else "".
    """

    files: Files
    source: Source
    trained: TrainedAlignment
    spaces: dict[str, str]
    policy: Policy
    norm: float | None
    seed: int
    reference: Reference
    classifier: str
    metric_looked_at: str = ""
    log: str = ""

    @property
    def asking(self) -> Proxies | None:
        """The queries by which the order asks the gallery, and whose thresholds it needs; None where it does not."""
        if self.policy in LOGGED and self.reference.demand is not None:
            return self.reference.demand.proxies
        return self.reference.proxies if self.policy == "expected_gain" else None

    def with_thresholds(self, best: F32) -> Scorer:
        """The same with thresholds from each query's best scores over the gallery (P, 10)."""
        depth = DEPTHS.get(self.metric_looked_at, GAIN_DEPTH) if self.policy in LOGGED else GAIN_DEPTH
        return self.with_cut(best[:, depth - 1])

    def with_cut(self, thresholds: F32) -> Scorer:
        """The same with these thresholds (P,)."""
        assert self.asking is not None
        proxies, demand = replace(self.asking, thresholds=thresholds), self.reference.demand
        if self.policy in LOGGED and demand is not None:
            return replace(self, reference=replace(self.reference, demand=replace(demand, proxies=proxies)))
        return replace(self, reference=replace(self.reference, proxies=proxies))

    def alignment(self) -> Alignment:
        if self.trained.weights not in _loaded:
            _loaded.clear()
            _loaded[self.trained.weights] = load_alignment(self.files, self.trained, self.spaces)
        return _loaded[self.trained.weights]

    def align(self, old: np.ndarray, side: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Aligned vectors (N, E) as they are indexed (norms matched unless kept), and log-variances (N,)."""
        aligned, log_variance = self.alignment()(old, side)
        if self.norm is None:
            return aligned, log_variance
        return match_norms(aligned, self.source.metric, self.norm), log_variance

    def keys(self, items: ItemColumns) -> tuple[F32, U64]:
        """Priorities (N,) and order keys (N,) of items."""
        priority = priority_of(self.policy, items, self.reference, seed=self.seed)
        return priority, order_key(priority, items.id_hash)


# One alignment per worker process, by content: the task's own copy of `files` is a new object each time.
_loaded: dict[FileRef, Alignment] = {}


@dataclass(frozen=True)
class Scores:
    """The finished stage: what made it; chunks: per unit the file with id, log_variance, priority, key, usable.

    pair_keys: the file with the order keys of the pairs.
    """

    fingerprint: str
    chunks: dict[str, FileRef]
    pair_keys: FileRef
    unusable: int
    ids_digest: str
    scorer: Scorer

    @property
    def digest(self) -> str:
        """Equal for equal files."""
        return fingerprint([reference.sha256 for _, reference in sorted(self.chunks.items())])


class _Work(Model):
    """One chunk to score; `pairs` are offsets in it."""

    unit: str
    start: int
    rows: int
    file: PinnedFile
    pairs: tuple[int, ...]

    @property
    def span(self) -> Span:
        return Span(self.file, self.start, self.rows)


def score(
    context: Context,
    scorer: Scorer,
    snapshot: Snapshot,
    pair_offsets: dict[str, tuple[int, ...]],
    added: Mapping[str, tuple[int, ...]],
) -> Scores:
    """Score all chunks that have no receipt yet.

    Args:
        pair_offsets: {unit of a chunk: offsets of its pairs}. added: the same of items whose keys are kept as well.
    """
    files, name = context.files, _scores_name(scorer, snapshot)
    scorer = _with_thresholds(context, scorer, snapshot, pair_offsets, name)
    if (finished := read_receipt(files, stage_receipt("scores", name))) is not None:
        return _from_table(name, scorer, finished)
    receipts = _score_missing(context, scorer, stage_folder("scores", name), _all_work(snapshot, pair_offsets))
    units = sorted(chunk.unit for chunk in snapshot.chunks)
    scored = {unit: receipts[unit].outputs[0] for unit in units}
    outputs = list(scored.values())
    table = pa.table(
        {
            "unit": units,
            "path": [output.path for output in outputs],
            "size": pa.array([output.size for output in outputs], pa.int64()),
            "sha256": [output.sha256 for output in outputs],
        }
    )
    listed = put_content(files, partial(stage_output, "scores", name, "chunks.parquet"), table_bytes(table))
    stage = Receipt(
        unit="scores",
        outputs=(listed, put_pair_keys(context, name, scored, _both(pair_offsets, added))),
        rows=snapshot.rows,
        ids_digest=combine_digests(receipts[unit].ids_digest for unit in units),
        seconds=sum(receipts[unit].seconds for unit in units),
        details={"unusable": sum(len(receipts[unit].quarantined) for unit in units)},
    )
    return _from_table(name, scorer, put_receipt(files, stage_receipt("scores", name), stage))


def _both(some: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
    return {unit: (*some.get(unit, ()), *others.get(unit, ())) for unit in {**some, **others}}


def scores_before(context: Context, scorer: Scorer, name: str) -> Scores:
    """The scores that a plan was made from whose order another one keeps, by their fingerprint.

    Raises:
        CorruptFile: they are gone; the gallery that they were of may be gone, too.
    """
    files = context.files
    finished = read_receipt(files, stage_receipt("scores", name))
    cut = None if scorer.asking is None else read_receipt(files, _thresholds_receipt(name))
    if finished is None or (scorer.asking is not None and cut is None):
        raise CorruptFile(
            f"{files.root}/{stage_folder('scores', name)}: gone, and the order of the plan follows from it. Restore "
            "the folder from a copy, or change the seed: an order of its own keeps what is embedded."
        )
    if cut is not None:
        scorer = _read_thresholds(scorer, cut)
    return _from_table(name, scorer, finished)


def score_more(context: Context, scores: Scores, snapshot: Snapshot, units: Set[str]) -> dict[str, FileRef]:
    """Score chunks of another snapshot in the order of `scores`: {unit: its score file}."""
    work = [item for item in _all_work(snapshot, {}) if item.unit in units]
    folder = stage_folder("scores", fingerprint([scores.fingerprint, "more"]))
    receipts = _score_missing(context, scores.scorer, folder, work)
    return {item.unit: receipts[item.unit].outputs[0] for item in work}


def _score_missing(context: Context, scorer: Scorer, folder: str, work: Sequence[_Work]) -> Receipts:
    """The receipts of all of `work`; what has none yet is scored."""
    receipts = find_receipts(context.files, folder)
    missing = [item for item in work if item.unit not in receipts]
    logger.debug("%s: %d of %d chunks have receipts", folder, len(work) - len(missing), len(work))
    rows = sum(item.rows for item in work)
    done = rows - sum(item.rows for item in missing)
    with context.progress.stage("score", rows, "items", done=done) as bar:
        for receipt in context.engine.run_units(partial(score_chunks, scorer, folder), _grouped(missing)):
            receipts[receipt.unit] = receipt
            bar.advance(receipt.rows)
    return receipts


def _all_work(snapshot: Snapshot, pair_offsets: dict[str, tuple[int, ...]]) -> list[_Work]:
    return [
        _Work(
            unit=chunk.unit,
            start=chunk.start,
            rows=chunk.rows,
            file=snapshot.gallery.files[chunk.file],
            pairs=pair_offsets.get(chunk.unit, ()),
        )
        for chunk in snapshot.chunks
    ]


def _with_thresholds(
    context: Context, scorer: Scorer, snapshot: Snapshot, pair_offsets: dict[str, tuple[int, ...]], name: str
) -> Scorer:
    """The scorer with what its order must know of the whole gallery: a first pass, kept with the scores.

    Each proxy query's best scores are merged over the chunks, so no process ever holds more than those. Pairs are left
    out: the proxy queries may be pairs, and would find themselves.
    """
    proxies = scorer.asking
    if proxies is None:
        return scorer
    path = _thresholds_receipt(name)
    if (receipt := read_receipt(scorer.files, path)) is None:
        work, best_scores = _all_work(snapshot, pair_offsets), partial(_best_scores, scorer, proxies)
        with context.progress.stage("thresholds", snapshot.rows, "items") as bar:

            def best() -> Iterator[np.ndarray]:
                for group, part in context.engine.run_tasks(best_scores, _grouped(work), name="best scores"):
                    bar.advance(sum(item.rows for item in group))
                    yield part

            asking = scorer.with_thresholds(merge_top(best())).asking
            table = pa.table({"threshold": None if asking is None else asking.thresholds})
        data = table_bytes(table)
        output = put_content(scorer.files, partial(stage_output, "scores", name, "thresholds.parquet"), data)
        receipt = put_receipt(scorer.files, path, Receipt(unit="thresholds", outputs=(output,), rows=table.num_rows))
    return _read_thresholds(scorer, receipt)


def _thresholds_receipt(name: str) -> str:
    return f"{stage_folder('scores', name)}/thresholds.receipt.json"


def _read_thresholds(scorer: Scorer, receipt: Receipt) -> Scorer:
    output = receipt.outputs[0]
    found = read_table(get_verified(scorer.files, output), name=output.path).column("threshold").to_numpy()
    return scorer.with_cut(found)


def _grouped(work: Sequence[_Work]) -> list[list[_Work]]:
    """Chunks in groups that a task reads in one pass."""
    return in_one_pass(work, lambda item: item.span)


def _best_scores(scorer: Scorer, proxies: Proxies, work: Sequence[_Work]) -> np.ndarray:
    """Each proxy query's best scores (P, k) in some chunks, their pairs and unusable rows left out."""
    source = scorer.source
    tables = read_spans(source.store, (item.span for item in work), mapped_columns(source.config))
    best: F32 | None = None
    for item, table in zip(work, tables, strict=True):
        old, side, unusable = mapped_vectors(table, source)
        kept = np.setdiff1d(np.arange(item.rows), [*item.pairs, *unusable])
        aligned, _ = scorer.align(old[kept], side[kept] if side is not None else None)
        best = proxies.best(old[kept], aligned, so_far=best)
    assert best is not None
    return best


def _scores_name(scorer: Scorer, snapshot: Snapshot) -> str:
    config = scorer.source.config
    later = [scorer.log] if scorer.log else []  # names of before have no such part
    if scorer.policy == "column":
        later.append(str(config.priority_column))
    return fingerprint(
        [
            snapshot.fingerprint,
            snapshot.cut,
            scorer.trained.fingerprint,
            scorer.policy,
            scorer.seed,
            scorer.classifier,
            config.weight_column,
            # Whether, not to which norm: that is a mean over the pairs, which other processors round in another way.
            scorer.norm is None,
            *later,
        ]
    )


def _from_table(name: str, scorer: Scorer, stage: Receipt) -> Scores:
    listed = stage.outputs[0]
    table = read_table(get_verified(scorer.files, listed), name=listed.path).to_pylist()
    return Scores(
        fingerprint=name,
        chunks={row["unit"]: FileRef(path=row["path"], size=row["size"], sha256=row["sha256"]) for row in table},
        pair_keys=stage.outputs[1],
        unusable=int(stage.details["unusable"]),
        ids_digest=stage.ids_digest,
        scorer=scorer,
    )


def score_chunks(scorer: Scorer, folder: str, work: Sequence[_Work]) -> Iterator[Receipt]:
    """Score chunks and write them. Rows without a usable old vector come first: they are absent until embedded."""
    config = scorer.source.config
    columns = [config.id_column, *mapped_columns(config)]
    needs_labels = scorer.policy in LABELLED
    if needs_labels and config.label_column is not None:
        columns.append(config.label_column)
    if config.weight_column is not None:
        columns.append(config.weight_column)
    if scorer.policy == "column" and config.priority_column is not None:
        columns.append(config.priority_column)
    # Nothing of it was done when the pass began: then a worker has died over this group, and not over its first chunk.
    if work and read_receipt(scorer.files, unit_receipt(folder, work[0].unit)) is not None:
        done = find_receipts(scorer.files, folder)
        yield from (done[item.unit] for item in work if item.unit in done)
        work = [item for item in work if item.unit not in done]
    tables = read_spans(scorer.source.store, (item.span for item in work), columns)
    yield from overlapped(_scored(scorer, folder, work, tables))


def _scored(
    scorer: Scorer, folder: str, work: Sequence[_Work], tables: Iterator[pa.Table]
) -> Iterator[Callable[[], Receipt]]:
    """What is to be written of each chunk."""
    start = time.monotonic()  # when its rows began to be read
    for item, table in zip(work, tables, strict=True):
        scores, receipt = _score_chunk(scorer, item, table)
        receipt = receipt.model_copy(update={"seconds": time.monotonic() - start})
        yield partial(_put_scores, scorer.files, folder, scores, receipt)
        start = time.monotonic()


def _put_scores(files: Files, folder: str, scores: pa.Table, receipt: Receipt) -> Receipt:
    output = put_content(files, partial(unit_output, folder, receipt.unit), table_bytes(scores))
    receipt = receipt.model_copy(update={"outputs": (output,)})
    return put_receipt(files, unit_receipt(folder, receipt.unit), receipt)


def _score_chunk(scorer: Scorer, work: _Work, table: pa.Table) -> tuple[pa.Table, Receipt]:
    """The scores of a chunk's rows, and their receipt, its output and seconds left open."""
    config, needs_labels = scorer.source.config, scorer.policy in LABELLED
    ids = read_id_column(table, config.id_column, scorer.source.id_type, path=work.file.path, start=work.start)
    old, side, unusable = mapped_vectors(table, scorer.source)
    aligned, log_variance = scorer.align(old, side)
    labels = item_labels(table, scorer.source, work.span) if needs_labels else None
    weights = item_weights(table, scorer.source, work.span)
    own = item_priorities(table, scorer.source, work.span) if scorer.policy == "column" else None
    items = ItemColumns(hash_ids(ids), old, aligned, log_variance, labels, weights, own)
    priority, keys = scorer.keys(items)
    bad = np.array(sorted(unusable), dtype=np.int64)
    if len(bad):
        priority[bad], log_variance[bad] = np.inf, np.inf
        keys[bad] = order_key(priority[bad], items.id_hash[bad])
    usable = np.ones(work.rows, bool)
    usable[bad] = False
    scores = pa.table(
        {"id": ids, "log_variance": log_variance, "priority": priority, "key": keys, "usable": usable},
    )
    receipt = Receipt(
        unit=work.unit,
        rows=work.rows,
        ids_digest=ids_digest(ids),
        quarantined=tuple(
            Quarantined(id=ids[row].as_py(), row=work.start + row, reason=reason) for row, reason in unusable.items()
        ),
    )
    return scores, receipt
