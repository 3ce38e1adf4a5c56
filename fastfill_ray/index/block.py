"""Several segments in one FAISS index: a search pays for every index that it asks, and for every list that it opens.

A block holds segments of one template, space and calibration, so that the best of it by raw score are its best by
calibrated score. Its rows are those of its segments, one segment after the other in the order of the version.

M segments of a block, N rows of it, Q queries, d dims, K hits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import faiss
import numpy as np

from fastfill_ray.index.ivf import (
    Assignment,
    can_join_lists,
    cut_lists,
    empty_lists,
    inverted_part,
    join_lists,
    swap_lists,
    template_key,
)
from fastfill_ray.index.segment import HiddenRows, deserialise, search_segment, serialise
from fastfill_ray.log.records import Segment
from fastfill_ray.retrieval.merging import Hits, best_hits, calibrated_scores
from fastfill_ray.types import F32, I64, Metric

# What tells a segment from all others: the sha256 of its index and of its ids.
Key = tuple[str, str]
# Most bytes of codes that are joined. Beside these what a further index costs is nothing, and a refresh copies no more
# than this at a time. Flat blocks stay in the processor's cache while query after query scans them.
_FLAT_BYTES, _IVF_BYTES = 1 << 24, 1 << 28
_FLAT = (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexFlatL2)
# How many times as many hits each further try asks for, where equal scores go on behind the last one.
_WIDER = 4


@dataclass(frozen=True)
class Block:
    """Rows of M segments in one index, which nobody changes.

    keys: of the segments. starts: (M + 1,) the row at which each begins, and N. template: the index without rows,
    serialised; None where it can be joined with no other. coarse_key: ``template_key``.
    """

    index: faiss.Index
    keys: tuple[Key, ...]
    starts: I64
    template: bytes | None
    coarse_key: str | None

    @property
    def row_bytes(self) -> int:
        return _row_bytes(self.index)

    def scanned_bytes(self, assignment: Assignment | None) -> int:
        """About how many bytes one query reads."""
        whole, inverted = self.index.ntotal * self.row_bytes, inverted_part(self.index)
        if inverted is None:
            return whole
        probes = int(inverted.ivf.nprobe) if assignment is None else assignment.lists.shape[1]
        return whole * probes // int(inverted.ivf.nlist)

    def rows_of(self, key: Key) -> slice:
        """The rows of one segment."""
        place = self.keys.index(key)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


class Member(NamedTuple):
    """A segment to be searched. `group`: equal where segments may share a block. `read`: gets its index from files."""

    key: Key
    group: Hashable
    read: Callable[[], faiss.Index]


def arrange(members: Sequence[Member], known: Sequence[Block]) -> list[Block]:
    """The members in blocks; each in the order given here.

    Only members that no known block holds are read. A known block stays as it is where its members are still here and
    of one group, and it is at least half full or would be made again; the members of others are copied from memory.
    """
    places = {member.key: place for place, member in enumerate(members)}
    blocks = [block for block in known if _is_settled(block, members, places)]
    settled = {key for block in blocks for key in block.keys}
    others = [member for member in members if member.key not in settled]
    return [*blocks, *_packed(others, [block for block in known if block.keys[0] not in settled])]


def _is_settled(block: Block, members: Sequence[Member], places: dict[Key, int]) -> bool:
    found = [places.get(key, -1) for key in block.keys]
    return (
        2 * block.index.ntotal * block.row_bytes >= _most_bytes(block.index)
        and min(found) >= 0
        and found == sorted(found)
        and len({members[place].group for place in found}) == 1
    )


def _packed(members: Sequence[Member], known: Sequence[Block]) -> Iterator[Block]:
    """Members of one template and group go into one block until it is full."""
    same = {block.keys: block for block in known}
    holders = {key: block for block in known for key in block.keys}
    piles: dict[tuple[bytes, Hashable], list[tuple[Member, Block]]] = {}
    for member in members:
        source = holders.get(member.key) or _single(member)
        if source.template is None or 2 * _count(member, source) * source.row_bytes > _most_bytes(source.index):
            yield source if source.keys == (member.key,) else _block([(member, source)], same)
            continue
        # Templates are compared byte by byte: of equal ones the lists and what codes mean are equal.
        pile = piles.setdefault((source.template, member.group), [])
        rows = sum(_count(each, holder) for each, holder in pile) + _count(member, source)
        if pile and rows * source.row_bytes > _most_bytes(source.index):
            yield _block(pile, same)
            pile.clear()
        pile.append((member, source))
    for pile in piles.values():
        yield _block(pile, same)


def _single(member: Member) -> Block:
    index = member.read()
    return Block(index, (member.key,), np.array([0, index.ntotal]), _template(index), template_key(index))


def _count(member: Member, source: Block) -> int:
    rows = source.rows_of(member.key)
    return rows.stop - rows.start


def _block(pile: Sequence[tuple[Member, Block]], same: dict[tuple[Key, ...], Block]) -> Block:
    """One block of all of a pile; the one that was there where it has the same segments."""
    keys = tuple(member.key for member, _ in pile)
    if (before := same.get(keys)) is not None:
        return before
    if len(pile) == 1 and pile[0][1].keys == keys:
        return pile[0][1]
    template = pile[0][1].template
    assert template is not None
    starts = np.cumsum([0, *(_count(member, source) for member, source in pile)])
    index = deserialise(template, "an index without rows")
    if isinstance(index, _FLAT):
        index.add(np.concatenate([_vectors(source.index)[source.rows_of(member.key)] for member, source in pile]))
    else:
        parts = (
            (cut_lists(source.index, source.rows_of(member.key)), start)
            for (member, source), start in zip(pile, starts.tolist(), strict=False)
        )
        swap_lists(index, join_lists(index, parts), int(starts[-1]))
    return Block(index, keys, starts, template, pile[0][1].coarse_key)


def _template(index: faiss.Index) -> bytes | None:
    if type(index) in _FLAT:
        return serialise(faiss.IndexFlat(index.d, index.metric_type))
    if not can_join_lists(index):
        return None
    rows = index.ntotal
    lists = swap_lists(index, empty_lists(index), 0)
    try:
        return serialise(index)
    finally:
        swap_lists(index, lists, rows)


def _vectors(index: Any) -> F32:
    """The vectors (N, d) of a Flat index, where they lie."""
    vectors: F32 = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return vectors


def _row_bytes(index: faiss.Index) -> int:
    inverted = inverted_part(index)
    return 4 * index.d if inverted is None else int(inverted.ivf.code_size)


def _most_bytes(index: faiss.Index) -> int:
    return _FLAT_BYTES if isinstance(index, _FLAT) else _IVF_BYTES


@dataclass(frozen=True)
class BlockSearch:
    """A block as one version searches it.

    numbers: (M,) of its segments in the version, ascending. segment: one of them; all have its space and calibration.
    hidden: rows of the block that are not returned.
    """

    block: Block
    numbers: I64
    segment: Segment
    hidden: HiddenRows | None

    def search(self, queries: F32, k: int, metric: Metric, assignment: Assignment | None) -> Hits:
        """Hits of queries (Q, d), the k best of each among them, in any order: what ``best_hits`` of all blocks takes.

        FAISS does not say which of equal scores it keeps. Within one segment any will do; between segments the first
        ones count, so a query whose k-th score goes on behind it is searched for more.
        """
        if len(self.numbers) == 1:
            return self._hits(*search_segment(self.block.index, queries, k, metric, assignment, self.hidden))
        hits = self._hits(*search_segment(self.block.index, queries, k + 1, metric, assignment, self.hidden))
        last = hits.scores[:, k]
        for query in np.flatnonzero((last == hits.scores[:, k - 1]) & (last > -np.inf)):
            row = slice(query, query + 1)
            its_lists = None if assignment is None else Assignment(assignment.distances[row], assignment.lists[row])
            first = self._first_of_equals(queries[row], k, metric, its_lists)
            hits.scores[row, :k], hits.segments[row, :k], hits.rows[row, :k] = first
            hits.scores[row, k], hits.segments[row, k], hits.rows[row, k] = -np.inf, -1, -1
        return hits

    def _first_of_equals(self, query: F32, k: int, metric: Metric, assignment: Assignment | None) -> Hits:
        """The k best hits of one query (1, d), searched for more until a lower score follows or nothing does."""
        depth, rows = k + 1, self.block.index.ntotal
        while True:
            depth = min(_WIDER * depth, rows)
            hits = self._hits(*search_segment(self.block.index, query, depth, metric, assignment, self.hidden))
            if depth == rows or hits.scores[0, -1] < hits.scores[0, k - 1]:
                return best_hits([hits], k)

    def _hits(self, raw: F32, rows: I64) -> Hits:
        """Hits as the version numbers them, of scores and rows (Q, K) of the block."""
        scores = calibrated_scores(raw, self.segment.calibration)
        place = self.block.starts.searchsorted(rows, side="right") - 1
        hits = Hits(scores, self.numbers[place], rows - self.block.starts[place])
        if (missing := rows < 0).any():
            hits.scores[missing], hits.segments[missing], hits.rows[missing] = -np.inf, -1, -1
        return hits
