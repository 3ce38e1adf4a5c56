"""Texts as token ids: a model's tokeniser loaded alone, and token ids as padded batches of about equal work.

Legend: n texts, b texts of one forward pass, L tokens of its longest text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.embedders.protocol import Role
from fastfill_ray.errors import EmbedderError
from fastfill_ray.types import I64

IDS = "input_ids"
# Where sentence-transformers keeps what it adds to a transformer; the first is what it writes today.
_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What it may say, beside the limit of tokens, for token ids to be all that the model needs.
_PLAIN: dict[str, Any] = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_UNLIMITED = 1 << 30  # transformers says 10^30 where a tokeniser knows no limit


class Tokeniser:
    """The ``Preparer`` of a sentence-transformers model whose input is token ids alone.

    The tokeniser is loaded when it is first needed, and the model is not.

    Args:
        folder: of the transformer.
        limit: tokens of a text, special ones among them; the smaller one of the tokeniser's and `positions` when None.
        positions: that the model has; None where it does not say.
        prefixes: put before every text.
        column: see ``strings``.
    """

    def __init__(
        self,
        folder: Path,
        limit: int | None,
        positions: int | None,
        prefixes: Mapping[Role, str],
        column: str | None,
    ) -> None:
        self._folder, self._limit, self._positions = folder, limit, positions
        self.prefixes, self._column = dict(prefixes), column

    @classmethod
    def of(
        cls, model: str, max_tokens: int | None, prefixes: Mapping[Role, str], column: str | None
    ) -> Tokeniser | None:
        """That of a sentence-transformers model in the folder `model`; None where it needs more than token ids, such as
        a prompt of its own, images, or a chat template.

        Args:
            max_tokens: the model's own limit when None.
        """
        modules = _read(Path(model) / "modules.json")
        if not modules or not modules[0]["type"].endswith(".Transformer"):
            return None
        folder = Path(model) / modules[0]["path"]
        settings = dict(next(filter(None, (_read(folder / name) for name in _SETTINGS)), {}))
        limit = settings.pop("max_seq_length", None)
        is_plain = all(name in _PLAIN and value == _PLAIN[name] for name, value in settings.items())
        prompt = (_read(Path(model) / "config_sentence_transformers.json") or {}).get("default_prompt_name")
        if not is_plain or prompt or not (folder / "tokenizer.json").is_file():
            return None
        positions = (_read(folder / "config.json") or {}).get("max_position_embeddings", -1)
        limit = limit if max_tokens is None else max_tokens
        return cls(folder, limit, None if positions == -1 else positions, prefixes, column)

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> dict[str, pa.Array]:
        """{IDS: (n,) list<int32>}. Raises as ``strings`` does."""
        return {IDS: self.ids(strings(batch, self._column), role)}

    def ids(self, texts: Sequence[str], role: Role) -> pa.ListArray:
        """(n,) list<int32> of n texts."""
        # Without the places of tokens in the text, which nobody needs; older releases always look them up.
        encode = getattr(self._loaded, "encode_batch_fast", self._loaded.encode_batch)
        encodings = encode([self.prefixes[role] + text for text in texts])
        return pa.array([encoding.ids for encoding in encodings], pa.list_(pa.int32()))

    @cached_property
    def _loaded(self) -> Any:
        """Of the `tokenizers` library, as transformers makes it for the model."""
        from transformers import AutoTokenizer

        tokeniser = AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
        limit, own = self._limit, tokeniser.model_max_length
        if limit is None:
            limit = own if self._positions is None else min(own, self._positions)
        fast = tokeniser.backend_tokenizer
        fast.no_padding()
        if limit < _UNLIMITED:
            fast.enable_truncation(limit, direction=tokeniser.truncation_side)
        else:
            fast.no_truncation()
        return fast


def _read(path: Path) -> Any:
    """What the JSON file holds; None where there is none."""
    return json.loads(path.read_bytes()) if path.is_file() else None


class Padding:
    """How a model wants texts of several lengths. token: the id that fills up; is_left: whether it comes first."""

    def __init__(self, token: int, *, is_left: bool) -> None:
        self._token, self._is_left = token, is_left

    def batch(self, ids: pa.ListArray) -> tuple[I64, I64]:
        """Ids and mask (b, L) of b texts: 1 where a token is, 0 where it is filled up."""
        lengths = ids.value_lengths().to_numpy()
        width = int(lengths.max())
        places = np.arange(width)[np.newaxis]
        is_token = places >= (width - lengths)[:, np.newaxis] if self._is_left else places < lengths[:, np.newaxis]
        padded = np.full(is_token.shape, self._token, np.int64)
        padded[is_token] = ids.flatten().to_numpy()
        return padded, is_token.astype(np.int64)


def batches_of(ids: pa.ListArray, rows: int, tokens: int | None) -> Iterator[I64]:
    """Row numbers of n texts, longest first, in batches: of at most `rows` texts, or, if `tokens` is given, of at most
    so many tokens, padding among them, whatever the number of texts. A single longer text is a batch of its own.
    """
    lengths = ids.value_lengths().to_numpy()
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        most = rows if tokens is None else max(1, tokens // max(1, int(lengths[order[first]])))
        yield order[first : first + most]
        first += most


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
