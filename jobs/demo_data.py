"""The demo's input: real docstrings as a gallery, with the vectors of an old model beside them.

Docstrings are parsed from source with ``ast``; nothing of what is parsed is imported. An item is the docstring without
its first sentence, a query is a first sentence, and the judgement of a query is its own docstring. The query log is
made up: few of the queries are asked often and many seldom (Zipf), some for the first time late, and who asks takes the
docstring that was meant. Built once per folder and kept: ``manifest.json``, written last, names every file with its
size and sha256.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastfill_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BUILDER_VERSION = 2
OLD_DIM = 64
ROW_GROUP_ROWS = 256
MIN_TEXT_CHARS = 80
MIN_QUERY_CHARS = 20
SKIPPED_STDLIB = ("idlelib", "lib2to3", "test", "turtledemo")
SKIPPED_FOLDERS = frozenset({"_bundled", "_vendor", "externals", "idle_test", "test", "testing", "tests"})
# All of them come with the core or the extra `demo`. Only parts of the two largest, which would take most of the time.
PACKAGES = (
    *("aiohttp", "anyio", "botocore", "click", "faiss", "fsspec", "huggingface_hub", "jinja2", "joblib", "mpmath"),
    *("narwhals", "networkx", "numpy", "packaging", "pandas", "pyarrow", "pydantic", "pygments", "requests", "rich"),
    *("scipy", "sentence_transformers", "sklearn", "urllib3", "yaml"),
    *("ray.data", "ray.train", "torch.distributions", "torch.nn", "torch.optim", "torch.utils"),
)


@dataclass(frozen=True)
class DemoSpec:
    """What to build. ``stdlib=None`` means all of the standard library."""

    stdlib: tuple[str, ...] | None = None
    packages: tuple[str, ...] = PACKAGES
    max_items: int = 6400
    max_items_per_label: int = 400
    max_queries: int = 1000
    num_events: int = 20_000
    num_shards: int = 8


@dataclass(frozen=True)
class DemoInput:
    """Where the built input is, and how large.

    ``gallery`` is a folder of Parquet shards: id, text, label, group (strings) and embedding (64 float32, unit length).
    ``queries`` is one file: id, text, label, group. ``qrels`` is one file: query_id, item_id. ``log`` is one file, an
    event a row: time, text, group, item_id.
    """

    gallery: Path
    queries: Path
    qrels: Path
    log: Path
    num_items: int
    num_queries: int
    num_events: int
    num_labels: int


@dataclass(frozen=True)
class Docstring:
    """One docstring, cut in two: ``sentence`` on one line, ``text`` the rest as written."""

    id: str
    sentence: str
    text: str
    label: str
    group: str


def build_demo_input(folder: str | Path) -> DemoInput:
    """The demo's input under `folder`, built now unless it is there in full.

    Raises:
        InputError: a package of ``PACKAGES`` is not installed.
    """
    return build(Path(folder), DemoSpec())


def build(folder: Path, spec: DemoSpec) -> DemoInput:
    """As `build_demo_input`, for any selection. A folder of another selection or builder is built anew."""
    request = json.loads(json.dumps({"builder": BUILDER_VERSION, **asdict(spec)}))
    manifest = _read_manifest(folder)
    if manifest is None or manifest.get("request") != request or not _is_complete(folder, manifest["files"]):
        items = select_items(read_docstrings(find_sources(spec)), spec)
        queries = select_queries(items, spec.max_queries)
        manifest = _write(folder, request, items, queries, spec)
    counts = manifest["counts"]
    return DemoInput(
        gallery=folder / "gallery",
        queries=folder / "queries.parquet",
        qrels=folder / "qrels.parquet",
        log=folder / "log.parquet",
        num_items=counts["items"],
        num_queries=counts["queries"],
        num_events=spec.num_events,
        num_labels=len(counts["labels"]),
    )


def find_sources(spec: DemoSpec) -> Iterator[tuple[str, str, Path]]:
    """(group, module name, source file) of everything selected, in a fixed order.

    Raises:
        InputError: a selected package is not installed.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names) if spec.stdlib is None else spec.stdlib:
        if name not in SKIPPED_STDLIB:
            yield from (("stdlib", module, path) for module, path in _modules(name, stdlib / name))
    for name in spec.packages:
        top, *rest = name.split(".")
        found = importlib.util.find_spec(top)
        if found is None or not found.submodule_search_locations:
            raise InputError(f"demo gallery: package {top!r} is not installed. Run: pip install 'fastfill_ray[demo]'")
        root = Path(found.submodule_search_locations[0], *rest)
        yield from (("third-party", module, path) for module, path in _modules(name, root))


def _modules(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Module names and files of one top level module or package, tests and vendored copies left out."""
    if root.with_suffix(".py").is_file():
        yield name, root.with_suffix(".py")
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and not any(part.startswith("test_") for part in parts):
            yield ".".join((name, *(part for part in parts if part != "__init__"))), path


def read_docstrings(sources: Iterable[tuple[str, str, Path]]) -> Iterator[Docstring]:
    """Every docstring long enough to be cut in two, in the order of `sources`; ids and texts may repeat.

    A file that this Python cannot parse (templates, code for other releases) has no docstrings.
    """
    for group, module, path in sources:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:
                continue
        for name, node in _documented(tree, module):
            parts = split_docstring(ast.get_docstring(node, clean=False) or "")
            if parts is not None:
                yield Docstring(name, *parts, label=module.split(".")[0], group=group)


def _documented(
    node: ast.AST, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _documented(child, name)


# A full stop ends a sentence before white space, unless it belongs to one of these; so does an empty line.
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s)|\n[ \t]*\n")


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """(first sentence, the rest), or None where the rest has fewer than ``MIN_TEXT_CHARS`` characters."""
    cleaned = inspect.cleandoc(docstring).strip()
    end = _SENTENCE_END.search(cleaned)
    if end is None:
        return None
    sentence, text = _one_line(cleaned[: end.end()]), cleaned[end.end() :].strip()
    if len(_one_line(text)) < MIN_TEXT_CHARS or not _is_unicode(cleaned):
        return None
    return sentence, text


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which Python strings may hold and Arrow may not."""
    return re.search("[\ud800-\udfff]", text) is None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _key(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def select_items(docstrings: Iterable[Docstring], spec: DemoSpec) -> list[Docstring]:
    """The gallery, ordered by id: first of each id and of each text, then capped per label and in all by a hash."""
    by_id: dict[str, Docstring] = {}
    texts: set[str] = set()
    for item in docstrings:
        text = _one_line(item.text).casefold()
        if item.id not in by_id and text not in texts:
            by_id[item.id] = item
            texts.add(text)
    per_label: Counter[str] = Counter()
    kept: list[Docstring] = []
    for item in sorted(by_id.values(), key=lambda item: _key("item", item.id)):
        per_label[item.label] += 1
        if per_label[item.label] <= spec.max_items_per_label:
            kept.append(item)
    return sorted(kept[: spec.max_items], key=lambda item: item.id)


def select_queries(items: list[Docstring], max_queries: int) -> list[Docstring]:
    """Items whose first sentence can be a query: long enough, theirs alone, and not repeated in the text it seeks."""
    uses = Counter(item.sentence.casefold() for item in items)
    usable = [
        item
        for item in items
        if len(item.sentence) >= MIN_QUERY_CHARS
        and uses[item.sentence.casefold()] == 1
        and item.sentence.rstrip(".!?").casefold() not in _one_line(item.text).casefold()
    ]
    chosen = sorted(usable, key=lambda item: _key("query", item.id))[:max_queries]
    return sorted(chosen, key=lambda item: item.id)


def _write(
    folder: Path, request: dict[str, Any], items: list[Docstring], queries: list[Docstring], spec: DemoSpec
) -> dict[str, Any]:
    # Imported here, so that a second run, which only reads the manifest, starts at once.
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fastfill_ray.embedders.protocol import embed_rows
    from fastfill_ray.embedders.text import WordLlamaEmbedder

    vectors, unusable = embed_rows(
        WordLlamaEmbedder(dim=OLD_DIM), {"text": [item.text for item in items]}, "item", OLD_DIM, metric="cosine"
    )
    if unusable:
        row, reason = next(iter(unusable.items()))
        raise InputError(
            f"demo gallery: {len(unusable)} texts have no old vector; the first, {items[row].id}: {reason}"
        )

    def columns(rows: list[Docstring], prefix: str = "") -> dict[str, Any]:
        named = {name: [getattr(row, name) for row in rows] for name in ("text", "label", "group")}
        return {"id": [prefix + row.id for row in rows], **named}

    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), OLD_DIM)
    gallery = pa.table({**columns(items), "embedding": embedding})
    # A query's id differs from its item's: a query that is itself a gallery item would be barred from finding it.
    asked = columns(queries, prefix="query:")
    asked["text"] = [query.sentence for query in queries]
    tables = {
        "queries.parquet": pa.table(asked),
        "qrels.parquet": pa.table({"query_id": asked["id"], "item_id": [query.id for query in queries]}),
        "log.parquet": _log(queries, spec.num_events),
    }
    cuts = [len(items) * shard // spec.num_shards for shard in range(spec.num_shards + 1)]
    for shard, (start, stop) in enumerate(itertools.pairwise(cuts)):
        tables[f"gallery/shard-{shard:02d}.parquet"] = gallery.slice(start, stop - start)

    (folder / "manifest.json").unlink(missing_ok=True)
    stale = [path for path in folder.glob("gallery/shard-*.parquet") if f"gallery/{path.name}" not in tables]
    for path in stale:
        path.unlink()
    files: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, compression="zstd")
        data = sink.getvalue().to_pybytes()
        _replace(folder / name, data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        "request": request,
        "counts": {
            "items": len(items),
            "queries": len(queries),
            "labels": dict(Counter(item.label for item in items).most_common()),
        },
        "files": files,
    }
    _replace(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _log(queries: list[Docstring], num_events: int) -> pa.Table:
    """What users asked, in the order of time, and which docstring they took."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    by_rank = rng.permutation(len(queries))
    shares = 1 / np.arange(1, len(queries) + 1)
    # One query in five is asked for the first time when four fifths of the log are over.
    is_late = rng.random(len(queries)) < 0.2
    now = np.arange(num_events) / num_events
    weights = np.where(is_late, 0.0, shares), shares
    asked = by_rank[
        np.where(
            now < 0.8,
            *(rng.choice(len(queries), num_events, p=each / each.sum()) for each in weights),
        )
    ].tolist()
    return pa.table(
        {
            "time": pa.array((now * 30 * 86400 * 1_000_000).astype(np.int64), pa.timestamp("us")),
            "text": [queries[row].sentence for row in asked],
            "group": [queries[row].group for row in asked],
            "item_id": [queries[row].id for row in asked],
        }
    )


def _replace(path: Path, data: bytes) -> None:
    """Write whole bytes at once; a file that already holds them keeps its time stamp, which a plan may have pinned."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that can be read: then the folder is half built."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return manifest


def _is_complete(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["size"]:
            return False
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
            return False
    return True
