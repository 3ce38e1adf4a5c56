"""One segment: FAISS bytes in, FAISS bytes out, and a search whose scores are larger-is-better.

FAISS ids are row numbers 0..N-1. Bytes come from ``serialize_index``: ``write_index`` does not notice a full disk.
N vectors, Q queries, d dims, K hits, H hidden rows.
"""

from __future__ import annotations

import math
import mmap
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from fastfill_ray.errors import ConfigError, CorruptFile, SpaceMismatch
from fastfill_ray.index.ivf import (
    Assignment,
    behind_transforms,
    coarse,
    inverted_part,
    search_lists,
    selects_in_lists,
    share_queries,
    transformed,
)
from fastfill_ray.log.records import Init, Segment
from fastfill_ray.retrieval.fusion import fuse, fused_dim
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.types import F32, I64, Bools, Metric

FAISS_METRIC: dict[Metric, int] = {
    "cosine": faiss.METRIC_INNER_PRODUCT,
    "ip": faiss.METRIC_INNER_PRODUCT,
    "l2": faiss.METRIC_L2,
}
# Most that FAISS allocates beside what it reads: the tables that it precomputes for IVF-PQ, 2 GiB by its own default.
_TABLE_BYTES = 2**31
# Hits that a search of more than is wanted holds at a time.
_FETCHED_HITS = 1 << 22
_HUGE_PAGE = 1 << 21
_reading = threading.Lock()
_library: Any = faiss  # for what its stubs lack


def train_template(factory: str, dim: int, metric: Metric, training: F32) -> bytes:
    """An empty trained index that every segment is built from, trained on one core with FAISS' own fixed seeds.

    The number of probed lists that an IVF template stores, and a search uses unless told otherwise, is 2 sqrt(L), at
    least 8: FAISS' own default of 1 loses most neighbours.

    Args:
        factory: a FAISS ``index_factory`` string.
        training: (N, dim) vectors to train on; copied and normalised for cosine.

    Raises:
        ConfigError: FAISS refuses the string, cannot train it on so few vectors, or cannot add to it.
    """
    vectors = _prepared(training, dim, metric)
    with one_thread():
        try:
            index = faiss.index_factory(dim, factory, FAISS_METRIC[metric])
            index.train(vectors)
            # FAISS finds the lists behind transforms and refinements too, which have no shared assignment.
            if (lists := faiss.try_extract_index_ivf(index)) is not None:
                lists.nprobe = min(lists.nlist, max(8, math.ceil(2 * math.sqrt(lists.nlist))))
            template = serialise(index)
            index.add(vectors[:1])
        except RuntimeError as error:
            raise ConfigError(
                f"index.factory {factory!r} cannot be used with dim {dim}, metric {metric} and {len(vectors):,} "
                f"training vectors: {faiss_reason(error)}. Use fewer lists, smaller codes, more pairs, or Flat."
            ) from error
    return template


def build_index(template: bytes, vectors: F32, metric: Metric) -> bytes:
    """The template with `vectors` (N, d) as rows 0..N-1, serialised.

    The same input answers alike. Its bytes may differ in the last bits of floats, from one processor to another or from
    one call to the next: nothing may compare them but with what is recorded of them.
    """
    with one_thread():
        index = deserialise(template, "index template")
        index.add(_prepared(vectors, index.d, metric))
        return serialise(index)


def in_large_pages(data: bytes) -> NDArray[np.uint8]:
    """A copy (n,) of what searches read again and again, in memory for which Linux is asked for huge pages.

    One query reads all of a Flat index, and with pages of 4 KiB the page table costs as much as that: 200,000 x 256
    took 6.4 ms, 10.8 in the memory of ``bytes``, and 14.6 in that of FAISS.
    """
    if len(data) < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(data, np.uint8)
    memory = mmap.mmap(-1, len(data) + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return np.frombuffer(data, np.uint8)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % _HUGE_PAGE
    array = whole[start : start + len(data)]
    array[:] = np.frombuffer(data, np.uint8)
    return array


def load_index(data: bytes | NDArray[np.uint8], *, dim: int, metric: Metric, rows: int, name: str) -> faiss.Index:
    """One segment, checked to be the one that is recorded.

    Returns:
        A ``faiss.Index`` whose vectors and codes lie in `data`, which it keeps: to open it copies nothing of these, and
        nothing can be added to it.

    Raises:
        CorruptFile: not a FAISS index, bytes left over, or another dim, metric or number of rows.
    """
    index = opened(data, name)
    found = (index.d, index.metric_type, index.ntotal)
    expected = (dim, FAISS_METRIC[metric], rows)
    if found != expected or not index.is_trained:
        raise CorruptFile(f"{name}: holds (dim, FAISS metric, rows) {found}, the record says {expected}.")
    return index


def opened(data: bytes | NDArray[np.uint8], name: str) -> faiss.Index:
    """An index that lies in `data`; see ``load_index``.

    Raises:
        CorruptFile: not a FAISS index, or bytes left over.
    """
    array = np.frombuffer(data, np.uint8)
    reader = _library.ZeroCopyIOReader(faiss.swig_ptr(array), len(data))
    index: Any = _read(reader, lambda: int(reader.rp_), len(data), name)
    index.referenced_objects = [array]
    return index


def segment_dim(segment: Segment, init: Init) -> int:
    """Dims of a segment's vectors, as its space and the dims that the root is bound to say."""
    return init.new_dim if segment.fusion is None else fused_dim(segment.fusion, init.old_dim, init.new_dim)


def segment_queries(segment: Segment, new: F32, old: F32 | None, metric: Metric) -> F32:
    """Queries (Q, d) in a segment's own space, ready for ``search_segment``.

    Args:
        new: (Q, E) as ``prepare_queries`` returns them. old: (Q, D) likewise, None if nothing needs them.

    Raises:
        ValueError: the segment is fused with old vectors and `old` is None.
    """
    return new if segment.fusion is None else fuse(old, new, segment.fusion, metric)


def prepare_queries(queries: NDArray[Any], dim: int, metric: Metric, model: Literal["new", "old"] = "new") -> F32:
    """Queries (Q, dim) of any float type as C-contiguous float32, normalised for cosine.

    Args:
        model: whose vectors they are, for messages.

    Raises:
        SpaceMismatch: another number of dims.
        ValueError: not a matrix of numbers, or a value that is not finite.
    """
    array = np.asarray(queries)
    name = "queries" if model == "new" else "old queries"
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} are {array.dtype} {array.shape}, expected numbers of shape (Q, {dim})")
    if array.shape[1] != dim:
        raise SpaceMismatch(
            f"{name} have dim {array.shape[1]}, the index has {dim}: embed them with the {model} model."
        )
    return _prepared(array, dim, metric, "old vector" if model == "old" else "vector")


class HiddenRows:
    """Rows of one segment that no search returns. Searches from several threads can share it.

    Args:
        rows: (H,) int64, ascending, each once, H >= 1.
        num_rows: N of the segment.
    """

    def __init__(self, rows: I64, num_rows: int) -> None:
        self.count = len(rows)
        self.mask: Bools = np.zeros(num_rows, bool)  # (N,)
        self.mask[rows] = True
        # FAISS reads this memory for as long as it selects by it.
        self._bitmap = np.packbits(self.mask, bitorder="little")
        self._hidden = _library.IDSelectorBitmap(self._bitmap)
        self.live = faiss.IDSelectorNot(self._hidden)

    @classmethod
    def of(cls, rows: I64, num_rows: int) -> HiddenRows | None:
        """None if there are no such rows: then a search costs what it costs without."""
        return cls(rows, num_rows) if len(rows) else None


def search_segment(
    index: faiss.Index,
    queries: F32,
    k: int,
    metric: Metric,
    assignment: Assignment | None = None,
    hidden: HiddenRows | None = None,
) -> tuple[F32, I64]:
    """The k best rows of one segment, hidden ones left out.

    With hidden rows: exact where it is exact without (Flat), and elsewhere with at least the recall of a search of
    k + H rows from which the hidden ones are dropped. See ``_search_live``.

    Args:
        queries: (Q, d) as ``prepare_queries`` returns them.
        k: hits per query, at least 1; may exceed the segment's rows.
        assignment: of ``coarse`` on an index of the same template; None lets the index search in its own way.
        hidden: rows that are not returned.

    Returns:
        scores (Q, k), larger is better: inner product, cosine, or minus squared L2; rows (Q, k). Missing: -inf and -1.
    """
    found = min(k, index.ntotal - (0 if hidden is None else hidden.count))
    if found == 0 or len(queries) == 0:
        return _padded(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), k)
    if hidden is not None:
        distances, labels = _search_live(index, queries, found, assignment, hidden)
    elif assignment is None:
        distances, labels = index.search(queries, found)
    else:
        distances, labels = search_lists(index, queries, found, assignment)
    scores = -distances if metric == "l2" else distances
    if (missing := labels < 0).any():
        scores[missing] = -np.inf
    return (scores, labels) if found == k else _padded(scores, labels, k)


def _padded(scores: F32, rows: I64, k: int) -> tuple[F32, I64]:
    """Scores and rows (Q, <= k), filled up to (Q, k)."""
    widths = [(0, 0), (0, k - scores.shape[1])]
    return np.pad(scores, widths, constant_values=-np.inf), np.pad(rows, widths, constant_values=-1)


def search_exactly(vectors: F32, queries: F32, k: int, metric: Metric) -> tuple[F32, I64]:
    """The k best of vectors (N, d) by brute force, for queries (Q, d): as ``search_segment`` of a Flat segment."""
    index = faiss.index_factory(vectors.shape[1], "Flat", FAISS_METRIC[metric])
    index.add(_prepared(vectors, index.d, metric))
    return search_segment(index, prepare_queries(queries, index.d, metric), k, metric)


def _search_live(
    index: faiss.Index, queries: F32, k: int, assignment: Assignment | None, hidden: HiddenRows
) -> tuple[F32, I64]:
    """Distances (Q, k) and rows (Q, k) as FAISS gives them, -1 where missing; k is at most the live rows.

    Indexes that scan codes leave hidden rows out as they scan, where FAISS lets them; others are searched for k + H
    rows. Both see the same live rows.
    """
    inverted = inverted_part(index)
    if inverted is not None:
        shared = assignment or coarse(index, queries)
        assert shared is not None
        if selects_in_lists(inverted.ivf):
            return search_lists(index, queries, k, shared, hidden.live)
        # One query's lists do not depend on the others': queries are cut together with their lists.
        return _over_fetch(
            lambda part, fetched: search_lists(
                index, queries[part], fetched, Assignment(shared.distances[part], shared.lists[part])
            ),
            len(queries), k, hidden,
        )  # fmt: skip
    if isinstance(index, faiss.IndexPreTransform):
        inner, transforms = behind_transforms(index)
        return _search_live(inner, transformed(queries, transforms), k, None, hidden)
    if isinstance(index, faiss.IndexHNSW):
        return _search_graph(index, queries, k, hidden)
    if isinstance(index, faiss.IndexFlat | faiss.IndexScalarQuantizer):
        return index.search(queries, k, params=_library.SearchParameters(sel=hidden.live))
    return _over_fetch(lambda part, fetched: index.search(queries[part], fetched), len(queries), k, hidden)


def _search_graph(index: Any, queries: F32, k: int, hidden: HiddenRows) -> tuple[F32, I64]:
    """An HNSW graph, walked over hidden rows as over any, with as many more candidates as there are hidden rows.

    A walk with the stored number of candidates ends among the hidden rows where those are the nearest. One with more
    candidates than a scan has codes to look at is dearer and worse than the scan.
    """
    graph, storage = index.hnsw, faiss.downcast_index(index.storage)
    candidates = max(graph.efSearch, k) + hidden.count
    if candidates * graph.nb_neighbors(0) >= index.ntotal and not isinstance(storage, faiss.Index2Layer):
        return _search_live(storage, queries, k, None, hidden)
    parameters = _library.SearchParametersHNSW()
    parameters.efSearch = min(candidates, index.ntotal)
    parameters.check_relative_distance = graph.check_relative_distance
    parameters.bounded_queue = graph.search_bounded_queue
    parameters.sel = hidden.live
    return index.search(queries, k, params=parameters)


def _over_fetch(
    search: Callable[[slice, int], tuple[F32, I64]], num_queries: int, k: int, hidden: HiddenRows
) -> tuple[F32, I64]:
    """The first k live ones of k + H hits.

    Args:
        search: (some of the queries, hits per query) -> distances and rows, best first, -1 where missing.
    """
    fetched = min(k + hidden.count, len(hidden.mask))
    distances, rows = np.empty((num_queries, k), np.float32), np.empty((num_queries, k), np.int64)
    step = max(1, _FETCHED_HITS // fetched)
    for start in range(0, num_queries, step):
        part = slice(start, min(start + step, num_queries))
        all_distances, all_rows = search(part, fetched)
        dropped = (all_rows < 0) | hidden.mask[all_rows]
        first = np.argsort(dropped, axis=1, kind="stable")[:, :k]
        distances[part] = np.take_along_axis(all_distances, first, axis=1)
        rows[part] = np.where(
            np.take_along_axis(dropped, first, axis=1), -1, np.take_along_axis(all_rows, first, axis=1)
        )
    return distances, rows


def _prepared(vectors: NDArray[Any], dim: int, metric: Metric, name: str = "vector") -> F32:
    """C-contiguous float32 (N, dim), finite, normalised for cosine. FAISS reads memory without asking what it is."""
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise SpaceMismatch(f"{name}s are {array.shape}, expected (N, {dim})")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ValueError(f"{name} {row} holds values that are not finite in float32")
    return unit_rows(array) if metric == "cosine" else array


def serialise(index: faiss.Index) -> bytes:
    writer: Any = faiss.VectorIOWriter()
    faiss.write_index(index, writer)
    # ``serialize_index`` makes an array first: one copy more of what may be a gigabyte.
    return bytes(_library.rev_swig_ptr(writer.data.data(), writer.data.size()).tobytes())


def deserialise(data: bytes, name: str) -> faiss.Index:
    """An index of its own memory, to which vectors can be added."""
    reader: Any = faiss.VectorIOReader()
    faiss.copy_array_to_vector(np.frombuffer(data, np.uint8), reader.data)
    return _read(reader, lambda: int(reader.rp), len(data), name)


def _read(reader: Any, position: Callable[[], int], size: int, name: str) -> faiss.Index:
    """The index that fills all `size` bytes of a reader."""
    # A damaged length must not become a huge allocation. The limit is global in FAISS, hence the lock.
    with _reading:
        limit = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(size + _TABLE_BYTES)
        try:
            index = faiss.read_index(reader)
        except (RuntimeError, MemoryError) as error:
            raise CorruptFile(f"{name} is not a FAISS index: {faiss_reason(error)}. Restore the file.") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(limit)
    if position() != size:
        raise CorruptFile(f"{name}: {size - position():,} bytes follow the FAISS index. Restore the file.")
    share_queries(index)
    return index


def faiss_reason(error: BaseException) -> str:
    """What FAISS said, without the C++ signature, source line and assertion before it."""
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?('.*' failed: )?", "", str(error).strip(), flags=re.DOTALL)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread's FAISS calls run on one core: threads would make graphs depend on their race."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


@contextmanager
def many_queries() -> Iterator[None]:
    """Inside, Flat indexes multiply matrices for as few as 20 queries. FAISS' own bound (queries times dimensions of
    128,000 in release 1.15) has 1,000 queries of 64 dimensions compared one by one: 2 to 4 times as long.
    """
    bound = _library.cvar.distance_compute_blas_threshold
    _library.cvar.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        _library.cvar.distance_compute_blas_threshold = bound
