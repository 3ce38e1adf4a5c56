"""The IVF part of an index: the assignment that segments of a template share; inverted lists, joined and cut.

N vectors, Q queries, d dims, K hits, P probes, L inverted lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from fastfill_ray.types import F32, I64

_library: Any = faiss  # for what its stubs lack
# Ids are unsigned where FAISS adds to them: this many more is none more.
_WRAP = 1 << 64
# Whose lists hold a code per row and nothing else.
_PLAIN = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
# FAISS' ``parallel_mode`` in which threads share the queries of a search with given lists, too.
_SHARE_QUERIES = 3


@dataclass(frozen=True)
class Assignment:
    """Coarse distances (Q, P) float32 and lists (Q, P) int64 of a batch of queries, for every segment of a template."""

    distances: F32
    lists: I64


@dataclass(frozen=True)
class _Inverted:
    """The IVF part of an index, and the transforms (OPQ, PCA, ...) that vectors pass through before it."""

    ivf: Any  # faiss.IndexIVF, with methods that its stubs do not know
    transforms: tuple[faiss.VectorTransform, ...]

    def transform(self, vectors: F32) -> F32:
        return transformed(vectors, self.transforms)


def template_key(index: faiss.Index) -> str | None:
    """Equal for IVF indexes with the same coarse quantiser and transforms: they can share an assignment. Else None."""
    inverted = inverted_part(index)
    if inverted is None:
        return None
    digest = hashlib.sha256(faiss.serialize_index(inverted.ivf.quantizer).data)
    for transform in inverted.transforms:
        writer: Any = faiss.VectorIOWriter()
        faiss.write_VectorTransform(transform, writer)
        digest.update(faiss.vector_to_array(writer.data).data)
    return digest.hexdigest()


def coarse(index: faiss.Index, queries: F32, nprobe: int | None = None) -> Assignment | None:
    """The lists to probe for prepared queries (Q, d); None if the index is not an IVF one.

    Args:
        nprobe: lists per query, None for the number stored in the template.
    """
    inverted = inverted_part(index)
    if inverted is None:
        return None
    probes = min(nprobe or inverted.ivf.nprobe, inverted.ivf.nlist)
    return Assignment(*inverted.ivf.quantizer.search(inverted.transform(queries), probes))


def share_queries(index: faiss.Index) -> None:
    """Have threads share a batch also where the lists to probe are given: by default one thread then scans them all."""
    if (inverted := inverted_part(index)) is not None:
        inverted.ivf.parallel_mode = _SHARE_QUERIES


def selects_in_lists(ivf: Any) -> bool:
    """Whether the lists are scanned by a selector with the results of an over-fetch. Fast scan rounds by what it
    collects, and the refined PQ and additive codes refuse selectors.
    """
    return isinstance(ivf, _PLAIN) and not isinstance(ivf, faiss.IndexIVFPQR)


def search_lists(
    index: faiss.Index, queries: F32, k: int, assignment: Assignment, selector: Any = None
) -> tuple[F32, I64]:
    """Distances (Q, K) and rows (Q, K) of the lists that an assignment names, -1 where missing.

    Args:
        selector: a ``faiss.IDSelector`` of the rows that may be returned; None for all.
    """
    inverted = inverted_part(index)
    if inverted is None:
        raise ValueError("a coarse assignment was given for an index without inverted lists")
    vectors = np.ascontiguousarray(inverted.transform(queries))
    distances = np.empty((len(queries), k), np.float32)
    labels = np.empty((len(queries), k), np.int64)
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = assignment.lists.shape[1]
    if selector is not None:
        parameters.sel = selector
    # The wrapped search_preassigned insists on the stored nprobe; the C++ one takes the number of lists as a parameter,
    # which unlike setting it on the index leaves other threads alone.
    inverted.ivf.search_preassigned_c(
        len(queries),
        faiss.swig_ptr(vectors),
        k,
        faiss.swig_ptr(assignment.lists),
        faiss.swig_ptr(assignment.distances),
        faiss.swig_ptr(distances),
        faiss.swig_ptr(labels),
        False,
        parameters,
    )
    return distances, labels


def inverted_part(index: faiss.Index) -> _Inverted | None:
    """The IVF index, also behind transforms; None if there is none."""
    if isinstance(index, faiss.IndexIVF):
        return _Inverted(index, ())
    if isinstance(index, faiss.IndexPreTransform):
        inner, transforms = behind_transforms(index)
        if isinstance(inner, faiss.IndexIVF):
            return _Inverted(inner, transforms)
    return None


def behind_transforms(index: faiss.IndexPreTransform) -> tuple[faiss.Index, tuple[faiss.VectorTransform, ...]]:
    """The index behind the transforms, and these in order."""
    chain: Any = index.chain
    transforms = tuple(faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size()))
    return faiss.downcast_index(index.index), transforms


def transformed(vectors: F32, transforms: tuple[faiss.VectorTransform, ...]) -> F32:
    for transform in transforms:
        vectors = transform.apply(vectors)
    return vectors


def can_join_lists(index: faiss.Index) -> bool:
    """Whether the lists of several such indexes of a template make one index that finds what they find.

    So it is where a list holds plain codes and a selector can leave rows out. Fast scan packs the codes of a list in
    blocks; other kinds keep more beside the codes.
    """
    inverted = inverted_part(index)
    return (
        inverted is not None
        and type(inverted.ivf) in _PLAIN
        and isinstance(faiss.downcast_InvertedLists(inverted.ivf.invlists), faiss.ArrayInvertedLists)
    )


def swap_lists(index: faiss.Index, lists: Any, rows: int) -> Any:
    """Put lists of `rows` rows in the place of those of an index, which now belong to the caller.

    Args:
        lists: ``faiss.ArrayInvertedLists``, which belong to the index from here on.
    """
    inverted = inverted_part(index)
    assert inverted is not None
    ivf, before = inverted.ivf, _library.downcast_InvertedLists(inverted.ivf.invlists)
    ivf.own_invlists = False  # or FAISS frees what it is to return
    before.this.own(True)
    lists.this.disown()
    ivf.replace_invlists(lists, True)
    ivf.ntotal = index.ntotal = rows
    return before


def empty_lists(index: faiss.Index) -> Any:
    """``faiss.ArrayInvertedLists`` that fit an index of plain codes, without a row."""
    inverted = inverted_part(index)
    assert inverted is not None
    return _library.ArrayInvertedLists(inverted.ivf.nlist, inverted.ivf.code_size)


def cut_lists(index: faiss.Index, rows: slice) -> Any:
    """A copy of the lists of an index with some of its rows only, counted from 0. The index stays as it is."""
    inverted = inverted_part(index)
    assert inverted is not None
    cut, lists = empty_lists(index), inverted.ivf.invlists
    if rows == slice(0, index.ntotal):
        lists.copy_subset_to(cut, _library.InvertedLists.SUBSET_TYPE_INVLIST, 0, lists.nlist)
        return cut
    counted = empty_lists(index)
    lists.copy_subset_to(cut, _library.InvertedLists.SUBSET_TYPE_ID_RANGE, rows.start, rows.stop)
    counted.merge_from(cut, (_WRAP - rows.start) % _WRAP)
    return counted


def join_lists(index: faiss.Index, parts: Iterable[tuple[Any, int]]) -> Any:
    """New lists with the rows of all parts, one part after the other within each list. The parts are used up.

    Args:
        index: one of the template of all parts. parts: the lists of each, and the number that its first row gets.
    """
    moved, pointers = [], _library.InvertedListsPtrVector()
    for lists, start in parts:
        moved.append(empty_lists(index))
        moved[-1].merge_from(lists, start)
        pointers.push_back(moved[-1])
    # Each list is added whole: added part by part it would be left with room for up to twice its rows.
    side_by_side = _library.HStackInvertedLists(pointers.size(), pointers.data())
    joined = empty_lists(index)
    side_by_side.copy_subset_to(joined, _library.InvertedLists.SUBSET_TYPE_INVLIST, 0, joined.nlist)
    return joined
