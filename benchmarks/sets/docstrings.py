"""Docstrings of the installed packages under two text encoders that a team would really swap."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer

from benchmarks.sets.base import BenchmarkSet, SplitSizes
from fastfill_ray.embedders.protocol import Embedder, Role, embed_rows
from fastfill_ray.embedders.text import MiniLM, WordLlamaEmbedder
from fastfill_ray.errors import EmbedderError
from jobs.demo_data import DemoSpec, Docstring, find_sources, read_docstrings, select_items, select_queries

BUILDER_VERSION = 1
OLD_DIM, NEW_DIM, SIDE_DIM = 64, 384, 32
MIN_ITEMS_PER_LABEL = 8
SPEC = DemoSpec(max_items=20_000, max_items_per_label=350, max_queries=2_000)
SIZES = SplitSizes(train=2_400, calibration=2_000, audit=5_000)


def build_docstrings() -> BenchmarkSet:
    """About 9,500 docstrings without their first sentences, which are the queries.

    Label: the top-level module or package, where at least eight items have it. Group: "stdlib" or "third-party".
    Side information: hashed character n-grams (2-4, inside words) in 32 dimensions.

    Raises:
        InputError: a package whose docstrings are read is not installed.
        EmbedderError: an encoder is not installed, or cannot embed a text.
    """
    items = select_items(read_docstrings(find_sources(SPEC)), SPEC)
    per_label = Counter(item.label for item in items)
    items = [item for item in items if per_label[item.label] >= MIN_ITEMS_PER_LABEL]
    queries = select_queries(items, SPEC.max_queries)
    names = sorted({item.label for item in items})
    row_of, class_of = {item.id: row for row, item in enumerate(items)}, {name: c for c, name in enumerate(names)}

    def classes(rows: list[Docstring]) -> NDArray[np.int64]:
        return np.array([class_of[row.label] for row in rows], dtype=np.int64)

    texts, sentences = [item.text for item in items], [query.sentence for query in queries]
    old, new = WordLlamaEmbedder(dim=OLD_DIM), MiniLM(threads=2)
    return BenchmarkSet(
        name="docstrings",
        description=(
            f"{len(items)} docstrings from {len(names)} packages, sought by {len(queries)} of their first sentences; "
            f"old: WordLlama, {OLD_DIM} dimensions, new: all-MiniLM-L6-v2, {NEW_DIM}."
        ),
        metric="cosine",
        old=embed_texts(old, texts, "item", OLD_DIM),
        new=embed_texts(new, texts, "item", NEW_DIM),
        labels=classes(items),
        sizes=SIZES,
        groups=np.array([item.group for item in items], dtype=object),
        side=_side(texts),
        queries_new=embed_texts(new, sentences, "query", NEW_DIM),
        queries_old=embed_texts(old, sentences, "query", OLD_DIM),
        query_labels=classes(queries),
        query_item=np.array([row_of[query.id] for query in queries], dtype=np.int64),
    )


def embed_texts(embedder: Embedder, texts: list[str], role: Role, dim: int) -> NDArray[np.float32]:
    """The vectors (N, dim) of the texts.

    Raises:
        EmbedderError: a text has none.
    """
    vectors, unusable = embed_rows(embedder, {"text": texts}, role, dim, metric="cosine")
    if unusable:
        row, reason = next(iter(unusable.items()))
        raise EmbedderError(f"{len(unusable)} texts have no vector; the first, {texts[row]!r}: {reason}")
    return vectors


def _side(texts: list[str]) -> NDArray[np.float32]:
    hashed = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=2**16).transform(texts)
    reduced: NDArray[np.float32] = TruncatedSVD(SIDE_DIM, random_state=0).fit_transform(hashed).astype(np.float32)
    return reduced
