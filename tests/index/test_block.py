from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.index import block as module
from fastfill_ray.index import parallel
from fastfill_ray.index.block import Block, Key, Member, arrange
from fastfill_ray.index.ivf import coarse
from fastfill_ray.index.parallel import run_searches
from fastfill_ray.index.reader import open_index
from fastfill_ray.index.segment import build_index, load_index, search_segment, train_template
from fastfill_ray.retrieval.calibration import Calibration
from tests.index.test_reader import DIM, Root
from tests.index.test_segment import brute_force, vectors
from tests.rounding import assert_equal_up_to_rounding

SIZES = (30, 1, 20, 45)


def key(number: int) -> Key:
    return str(number), ""


class Segments:
    """Segments of one template, of SIZES rows; `read` lists those that were read, in order."""

    def __init__(self, factory: str) -> None:
        self.template = train_template(factory, DIM, "ip", vectors(400, seed=9))
        self.parts = [vectors(rows, seed=seed) for seed, rows in enumerate(SIZES)]
        self.read: list[int] = []

    def member(self, number: int, group: object = 0) -> Member:
        return Member(key(number), group, lambda: self.load(number))

    def load(self, number: int) -> faiss.Index:
        self.read.append(number)
        data = build_index(self.template, self.parts[number], "ip")
        return load_index(data, dim=DIM, metric="ip", rows=SIZES[number], name="segment")

    def arranged(self, numbers: Sequence[int], known: Sequence[Block] = ()) -> list[Block]:
        self.read.clear()
        return arrange([self.member(number) for number in numbers], known)


def holds(block: Block) -> list[int]:
    return [int(name) for name, _ in block.keys]


def answers(index: faiss.Index, queries: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return search_segment(index, queries, index.ntotal, "ip", coarse(index, queries, 8))


JOINED = ["Flat", "IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4x4", "PCA8,IVF8,Flat"]


@pytest.mark.parametrize("factory", JOINED)
def test_joined_segments_answer_as_one_index_of_their_rows_and_stay_so_when_some_leave(factory: str) -> None:
    segments, queries = Segments(factory), vectors(4, seed=77)

    def check(block: Block, numbers: list[int]) -> None:
        assert holds(block) == numbers
        assert block.starts.tolist() == np.cumsum([0, *(SIZES[number] for number in numbers)]).tolist()
        rows = np.concatenate([segments.parts[number] for number in numbers])
        one = load_index(
            build_index(segments.template, rows, "ip"), dim=DIM, metric="ip", rows=len(rows), name="one index"
        )
        expected, actual = answers(one, queries), answers(block.index, queries)
        # What a transform makes of a vector is rounded by how many are added at a time.
        assert_equal_up_to_rounding(actual[0], expected[0])
        np.testing.assert_array_equal(actual[1], expected[1])

    [all_of_them] = segments.arranged([0, 1, 2, 3])
    assert segments.read == [0, 1, 2, 3]
    check(all_of_them, [0, 1, 2, 3])
    [fewer] = segments.arranged([1, 3], [all_of_them])
    assert segments.read == []
    check(fewer, [1, 3])
    [more] = segments.arranged([0, 1, 3], [fewer])
    assert segments.read == [0]
    check(more, [0, 1, 3])
    check(all_of_them, [0, 1, 2, 3])
    assert segments.arranged([0, 1, 3], [more])[0] is more


@pytest.mark.parametrize("factory", ["HNSW8", "SQ8", "IVF8,PQ8x4fs", "Flat,RFlat"])
def test_other_indexes_stay_by_themselves(factory: str) -> None:
    segments = Segments(factory)
    blocks = segments.arranged([0, 2])
    assert [holds(block) for block in blocks] == [[0], [2]]
    again = segments.arranged([2, 0], blocks)
    assert segments.read == []
    assert {id(block) for block in again} == {id(block) for block in blocks}


def test_only_segments_of_one_template_and_group_are_joined() -> None:
    first, other = Segments("IVF8,Flat"), Segments("IVF8,Flat")
    other.template = train_template("IVF8,Flat", DIM, "ip", vectors(400, seed=10))
    blocks = arrange([first.member(0, "a"), first.member(1, "b"), first.member(2, "a"), other.member(3, "a")], ())
    assert sorted(holds(block) for block in blocks) == [[0, 2], [1], [3]]
    # The second comes into the group of the first, and the third leaves it.
    blocks = arrange([first.member(0, "a"), first.member(1, "a"), first.member(2, "b"), other.member(3, "a")], blocks)
    assert sorted(holds(block) for block in blocks) == [[0, 1], [2], [3]]


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_a_block_that_is_half_full_stays_and_large_segments_are_not_copied(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FLAT_BYTES", "_IVF_BYTES"):
        monkeypatch.setattr(module, name, 60 * 4 * DIM)
    segments = Segments(factory)
    blocks = {tuple(holds(block)): block for block in segments.arranged([0, 1, 2, 3])}
    assert set(blocks) == {(0, 1, 2), (3,)}
    again = {tuple(holds(block)): block for block in segments.arranged([0, 1, 2], list(blocks.values()))}
    assert again == {(0, 1, 2): blocks[0, 1, 2]}
    assert segments.read == []
    smaller = {tuple(holds(block)): block for block in segments.arranged([0, 1, 3], list(blocks.values()))}
    assert set(smaller) == {(0, 1), (3,)}
    assert smaller[3,] is blocks[3,]
    assert segments.read == []


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_of_equal_scores_the_first_segments_and_rows_are_returned_wherever_better_ones_lie(
    tmp_path: Path, factory: str
) -> None:
    root = Root(tmp_path, factory=factory)
    same = np.ones((30, DIM), np.float32)
    last = same.copy()
    last[5] *= 2
    root.commit(
        root.segment(same[:4], range(4)), root.hiding(root.segment(same, range(100, 130)), [0]), 
        root.segment(last, range(200, 230)),
    )  # fmt: skip
    index = open_index(str(tmp_path))
    assert len(index._snapshot.blocks) == 1
    expected = [205, 0, 1, 2, 3, *range(101, 130), *range(200, 205), *range(206, 230)]
    queries = np.concatenate([np.ones((1, DIM)), vectors(3)])
    for k in (1, 2, 4, 5, 6, 33, 40, 63):
        scores, ids = index.search(queries, k, nprobe=8)
        assert ids[0].tolist() == expected[:k]
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_one_query_is_searched_by_several_threads_as_by_one(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_LEAST_BYTES", 1)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: threads)
    root, parts = Root(tmp_path), [vectors(rows, seed=rows) for rows in (9, 5, 7)]
    scales = [1.0, 2.0, 0.5]
    root.commit(
        *(root.segment(p, range(10 * n, 10 * n + len(p)), Calibration(scale=scales[n])) for n, p in enumerate(parts))
    )
    queries = vectors(2, seed=3)
    truth = np.concatenate([s * brute_force(queries, p, "ip") for s, p in zip(scales, parts, strict=True)], axis=1)
    names = np.concatenate([np.arange(10 * n, 10 * n + len(p)) for n, p in enumerate(parts)])
    assert open_index(str(tmp_path)).search(queries, 5)[1].tolist() == names[np.argsort(-truth)[:, :5]].tolist()


def test_results_come_in_order_and_errors_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 2)
    searches = [lambda n=n: n for n in range(20)]
    for scanned in (0, 1 << 40):
        assert run_searches(searches, 1, lambda scanned=scanned: scanned) == list(range(20))
        with pytest.raises(ZeroDivisionError):
            run_searches([*searches, lambda: 1 // 0], 1, lambda scanned=scanned: scanned)
