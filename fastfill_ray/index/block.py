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
from fastfill_ray.index.segment import HiddenRows, deserialise, in_large_pages, opened, search_segment, serialise
from fastfill_ray.log.records import Segment
from fastfill_ray.retrieval.merging import Hits, best_hits, calibrated_scores
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.types import F32, I64, Metric

# Scores (Q, K) as FAISS gives them, larger is better, and rows (Q, K) of a block: -inf and -1 where they are missing.
Found = tuple[F32, I64]
# What tells a segment from all others: the sha256 of its index and of its ids.
Key = tuple[str, str]
# Most bytes of codes that are joined. Beside these what a further index costs is nothing, and a refresh copies no more
# than this at a time. Flat blocks stay in the processor's cache while query after query scans them.
_FLAT_BYTES, _IVF_BYTES = 1 << 24, 1 << 28
# Segments that are read at a time: while one is fetched, another one is checked. Each holds its bytes meanwhile.
_READ_AHEAD = 2
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
    read = read_ahead(_single, (member for member in members if member.key not in holders), _READ_AHEAD)
    for member in members:
        source = holders.get(member.key) or next(read)
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
    index = opened(in_large_pages(serialise(index)), "a block")
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

    def search(self, queries: F32, k: int, metric: Metric, assignment: Assignment | None) -> Found:
        """The best of the block for queries (Q, d): k, and of several segments one more, see ``Blocks.hits``."""
        width = k if len(self.numbers) == 1 else k + 1
        return search_segment(self.block.index, queries, width, metric, assignment, self.hidden)

    def first_of_equals(self, query: F32, k: int, metric: Metric, assignment: Assignment | None) -> Hits:
        """The k best hits of one query (1, d), searched for more until a lower score follows or nothing does."""
        depth, rows, alone = k + 1, self.block.index.ntotal, Blocks([self])
        while True:
            depth = min(_WIDER * depth, rows)
            found = search_segment(self.block.index, query, depth, metric, assignment, self.hidden)
            hits = alone.numbered([found])
            if depth == rows or hits.scores[0, -1] < hits.scores[0, k - 1]:
                return best_hits([hits], k)


class Blocks:
    """The blocks of a version side by side: what one query finds in all of them is numbered and calibrated at once."""

    def __init__(self, blocks: Sequence[BlockSearch]) -> None:
        rows = [each.block.index.ntotal for each in blocks]
        self._first_rows = np.cumsum([0, *rows])  # of each block, among the rows of all
        starts = [
            each.block.starts[:-1] + first for each, first in zip(blocks, self._first_rows.tolist(), strict=False)
        ]
        self._starts, self._numbers = np.concatenate(starts), np.concatenate([each.numbers for each in blocks])
        self._scales = np.array([each.segment.calibration.scale for each in blocks])
        self._offsets = np.array([each.segment.calibration.offset for each in blocks])

    def numbered(self, found: Sequence[Found]) -> Hits:
        """Hits (Q, L) as the version numbers them, the blocks' one after the other."""
        block = np.repeat(np.arange(len(found)), [raw.shape[1] for raw, _ in found])
        raw, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        places = rows + self._first_rows[block]
        segment = self._starts.searchsorted(places, side="right") - 1
        scores = calibrated_scores(raw, self._scales[block], self._offsets[block])
        hits = Hits(scores, self._numbers[segment], places - self._starts[segment])
        if (missing := rows < 0).any():
            hits.scores[missing], hits.segments[missing], hits.rows[missing] = -np.inf, -1, -1
        return hits

    def hits(self, found: Sequence[Found], k: int, again: Callable[[int, int], Hits]) -> Hits:
        """Hits (Q, L), the k best of each query among them, in any order: what ``best_hits`` takes.

        FAISS does not say which of equal scores it keeps. Within one segment any will do; between segments the first
        ones count, so a query whose k-th score goes on behind it is searched for more.

        Args:
            found: of each block. again: (block, query) -> ``BlockSearch.first_of_equals``.
        """
        hits, ends = self.numbered(found), np.cumsum([raw.shape[1] for raw, _ in found])
        shared = np.array([block for block, (raw, _) in enumerate(found) if raw.shape[1] > k], np.int64)
        last = ends[shared] - 1
        tied = (hits.scores[:, last] == hits.scores[:, last - 1]) & (hits.scores[:, last] > -np.inf)
        for query, place in zip(*(each.tolist() for each in np.nonzero(tied)), strict=True):
            first, end = again(int(shared[place]), query), int(last[place])
            part = slice(end - k, end)
            hits.scores[query, part], hits.segments[query, part], hits.rows[query, part] = (each[0] for each in first)
            hits.scores[query, end], hits.segments[query, end], hits.rows[query, end] = -np.inf, -1, -1
        return hits
