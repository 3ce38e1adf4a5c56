"""Operations of web services as their interfaces document them, sought by name: what people type is a few words.

Beside the docstrings, whose queries are whole sentences: a short query says less, so the old model is further behind,
and another text lies about as near. The texts ship with botocore, which s3fs installs.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.sets.base import BenchmarkSet, SplitSizes
from benchmarks.sets.docstrings import NEW_DIM, OLD_DIM, embed_texts
from fastfill_ray.embedders.text import MiniLM, WordLlamaEmbedder
from fastfill_ray.errors import InputError

BUILDER_VERSION = 1
MAX_ITEMS, MIN_TEXT_CHARS = 7_000, 80
SIZES = SplitSizes(train=1_800, calibration=1_800, audit=3_400)
_TAG = re.compile(r"<[^>]+>")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Operation(NamedTuple):
    """One operation: the service's folder, its name in words, and what is written about it."""

    service: str
    name: str
    text: str


def build_operations() -> BenchmarkSet:
    """7,000 descriptions of operations; each name that no other operation has seeks its own description.

    Label: the service.

    Raises:
        InputError: botocore is not installed.
        EmbedderError: an encoder is not installed, or cannot embed a text.
    """
    by_text = {operation.text: operation for operation in read_operations()}
    digests = {text: hashlib.sha256(text.encode()).hexdigest() for text in by_text}
    items = [by_text[text] for text in sorted(by_text, key=lambda text: digests[text])[:MAX_ITEMS]]
    uses = Counter(operation.name for operation in by_text.values())
    asked = [row for row, operation in enumerate(items) if uses[operation.name] == 1]
    services = {name: number for number, name in enumerate(sorted({operation.service for operation in items}))}
    labels = np.array([services[operation.service] for operation in items], dtype=np.int64)
    texts, names = [operation.text for operation in items], [items[row].name for row in asked]
    old, new = WordLlamaEmbedder(dim=OLD_DIM), MiniLM(threads=2)
    return BenchmarkSet(
        name="operations",
        description=(
            f"{len(items)} operations of {len(services)} web services, sought by {len(asked)} of their names; old: "
            f"WordLlama, {OLD_DIM} dimensions, new: all-MiniLM-L6-v2, {NEW_DIM}."
        ),
        metric="cosine",
        old=embed_texts(old, texts, "item", OLD_DIM),
        new=embed_texts(new, texts, "item", NEW_DIM),
        labels=labels,
        sizes=SIZES,
        queries_new=embed_texts(new, names, "query", NEW_DIM),
        queries_old=embed_texts(old, names, "query", OLD_DIM),
        query_labels=labels[asked],
        query_item=np.array(asked, dtype=np.int64),
    )


def read_operations() -> Iterator[Operation]:
    """Every described operation of the newest interface of each service, in the order of the services' folders."""
    found = importlib.util.find_spec("botocore")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "set 'operations': package 'botocore' is not installed. Run: pip install 'fastfill_ray[bench]'"
        )
    for folder in sorted(Path(found.submodule_search_locations[0], "data").iterdir()):
        interfaces = sorted(folder.glob("*/service-2.json.gz"))
        for name, operation in _operations(interfaces[-1]) if interfaces else ():
            text = " ".join(html.unescape(_TAG.sub(" ", operation.get("documentation", ""))).split())
            if len(text) >= MIN_TEXT_CHARS:
                yield Operation(folder.name, _WORD_START.sub(" ", name).lower(), text)


def _operations(interface: Path) -> list[tuple[str, dict[str, str]]]:
    with gzip.open(interface) as file:
        return list(json.load(file)["operations"].items())
