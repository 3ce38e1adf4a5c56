"""The two real inputs: docstrings with old vectors for the demo, and digits for the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.embedders.text import WordLlamaEmbedder
from fastfill_ray.errors import InputError
from jobs.demo_data import (
    MIN_TEXT_CHARS,
    PACKAGES,
    DemoInput,
    DemoSpec,
    Docstring,
    build,
    find_sources,
    read_docstrings,
    select_items,
    select_queries,
    split_docstring,
)
from tests.digits import NEW_DIM, OLD_DIM, DigitsEmbedder, DigitsInput, build_digits

SMALL = DemoSpec(
    stdlib=("json", "asyncio", "logging"),
    packages=("click", "requests"),
    max_items=150,
    max_items_per_label=60,
    max_queries=40,
    num_shards=3,
)
LONG = "This part is long enough to stand on its own as the payload of an item, as every payload has to be."


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoInput:
    return build(tmp_path_factory.mktemp("demo"), SMALL)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsInput:
    return build_digits(tmp_path_factory.mktemp("digits"))


def bytes_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------------------------- docstrings


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        (f"Open a file. {LONG}", "Open a file."),
        (f"Open a file,\n    then close it. {LONG}", "Open a file, then close it."),
        (f"open(name) -> stream\n\n    {LONG}", "open(name) -> stream"),
        (f"Use a suffix, e.g. a letter. {LONG}", "Use a suffix, e.g. a letter."),
        (f"Is version 2.0 newer? {LONG}", "Is version 2.0 newer?"),
    ],
)
def test_a_docstring_is_cut_after_its_first_sentence(docstring: str, sentence: str) -> None:
    assert split_docstring(docstring) == (sentence, LONG)


@pytest.mark.parametrize("docstring", ["", "One sentence.", f"{LONG}", "First. " + "x" * 79, f"\ud800. {LONG}"])
def test_a_docstring_without_a_long_rest_is_no_item(docstring: str) -> None:
    assert split_docstring(docstring) is None


@given(st.text())
def test_cutting_never_fails_and_keeps_the_promised_length(docstring: str) -> None:
    parts = split_docstring(docstring)
    assert parts is None or len(" ".join(parts[1].split())) >= MIN_TEXT_CHARS


def test_ids_are_qualified_names_of_whatever_has_a_docstring(tmp_path: Path) -> None:
    source = f'''"""Module. {LONG} 1"""
class A:
    """Class. {LONG} 2"""
    def f(self):
        """Method. {LONG} 3"""
        def inner():
            """Inner. {LONG} 4"""
if True:
    async def g():
        """Branch. {LONG} 5"""
raise SystemExit  # parsed, never run
'''
    (tmp_path / "m.py").write_text(source)
    (tmp_path / "broken.py").write_text("def (")
    sources = [("stdlib", "p.m", tmp_path / "m.py"), ("stdlib", "p.broken", tmp_path / "broken.py")]
    found = list(read_docstrings(sources))
    assert [item.id for item in found] == ["p.m", "p.m.A", "p.m.A.f", "p.m.A.f.inner", "p.m.g"]
    assert {item.label for item in found} == {"p"}


def test_texts_and_ids_are_kept_once_and_the_caps_hold() -> None:
    rows = [Docstring(f"a.{n}", f"Sentence {n}.", f"{LONG} {n}", "a", "stdlib") for n in range(30)]
    rows += [Docstring("b.same", "Other.", f"{LONG}   3", "b", "stdlib"), replace(rows[0], text=f"{LONG} again")]
    items = select_items(rows, DemoSpec(max_items_per_label=20, max_items=15))
    assert len(items) == 15
    assert items == sorted(items, key=lambda item: item.id)
    everything = select_items(rows, DemoSpec())
    assert everything == sorted(rows[:30], key=lambda item: item.id)
    assert len(select_items(rows, DemoSpec(max_items_per_label=20))) == 20


def test_a_sentence_is_a_query_only_if_it_is_long_its_own_and_not_in_its_text() -> None:
    good = Docstring("a", "Open a file for reading.", LONG, "a", "stdlib")
    short = Docstring("b", "Open a file.", LONG, "a", "stdlib")
    shared = [Docstring(name, "Return the shared thing.", LONG, "a", "stdlib") for name in "cd"]
    repeated = Docstring("e", "Close the file at once.", f"{LONG} We close  the\nfile at once, always.", "a", "stdlib")
    assert select_queries([good, short, *shared, repeated], 10) == [good]


# ------------------------------------------------------------------------------------------------- the demo


def test_the_gallery_holds_unique_real_docstrings_with_their_old_vectors(demo: DemoInput) -> None:
    shards = sorted(demo.gallery.iterdir())
    assert [shard.name for shard in shards] == [f"shard-0{n}.parquet" for n in range(3)]
    gallery = pq.read_table(demo.gallery)
    assert gallery.column_names == ["id", "text", "label", "group", "embedding"]
    assert str(gallery.schema.field("embedding").type).startswith("fixed_size_list<")
    rows = gallery.drop_columns("embedding").to_pylist()
    assert len(rows) == demo.num_items == len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 150
    assert {row["id"].split(".")[0] for row in rows} == {row["label"] for row in rows}
    assert {(row["label"], row["group"]) for row in rows} == {
        *(("json", "stdlib"), ("asyncio", "stdlib"), ("logging", "stdlib")),
        *(("click", "third-party"), ("requests", "third-party")),
    }
    assert max(Counter(row["label"] for row in rows).values()) <= 60
    vectors = gallery["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), 64)
    again = WordLlamaEmbedder(dim=64)({"text": [row["text"] for row in rows]}, "item")
    np.testing.assert_allclose(vectors, again, atol=1e-6)


def test_every_query_is_judged_to_want_its_own_docstring(demo: DemoInput) -> None:
    gallery = {row["id"]: row for row in pq.read_table(demo.gallery, columns=["id", "text", "label"]).to_pylist()}
    queries = {row["id"]: row for row in pq.read_table(demo.queries).to_pylist()}
    qrels = pq.read_table(demo.qrels).to_pylist()
    assert len(queries) == len(qrels) == demo.num_queries == 40
    assert gallery.keys().isdisjoint(queries)  # else the self-match rule would bar the answer
    for judged in qrels:
        query, item = queries[judged["query_id"]], gallery[judged["item_id"]]
        assert query["label"] == item["label"]
        assert query["text"] not in item["text"]


def test_a_second_build_changes_nothing_and_loads_no_heavy_package(demo: DemoInput) -> None:
    folder = demo.queries.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = (
        "import sys; from pathlib import Path; from jobs.demo_data import DemoSpec, build; "
        f"build(Path({str(folder)!r}), {SMALL!r}); "
        "print([name for name in ('torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["manifest lost", "manifest torn", "shard lost", "shard changed"])
def test_a_half_built_folder_is_built_anew_to_the_same_bytes(demo: DemoInput, damage: str) -> None:
    folder = demo.queries.parent
    before = bytes_under(folder)
    untouched = (demo.gallery / "shard-00.parquet").stat().st_mtime_ns
    if damage == "manifest lost":
        (folder / "manifest.json").unlink()
    elif damage == "manifest torn":
        (folder / "manifest.json").write_bytes(before["manifest.json"][:100])
    elif damage == "shard lost":
        (demo.gallery / "shard-01.parquet").unlink()
    else:
        (demo.gallery / "shard-01.parquet").write_bytes(before["gallery/shard-01.parquet"][::-1])
    assert build(folder, SMALL) == demo
    assert bytes_under(folder) == before
    assert (demo.gallery / "shard-00.parquet").stat().st_mtime_ns == untouched


def test_another_selection_replaces_the_folder(tmp_path: Path) -> None:
    build(tmp_path, replace(SMALL, packages=()))
    fewer = build(tmp_path, replace(SMALL, packages=(), num_shards=2, max_items=30))
    assert fewer.num_items == pq.read_table(fewer.gallery).num_rows == 30
    assert len(list(fewer.gallery.iterdir())) == 2
    assert json.loads((tmp_path / "manifest.json").read_bytes())["counts"]["items"] == 30


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match="'no_such_package' is not installed"):
        list(find_sources(DemoSpec(stdlib=(), packages=("no_such_package",))))


def test_the_whole_selection_has_enough_files_and_no_tests_among_them() -> None:
    sources = list(find_sources(DemoSpec()))
    assert len(sources) > 2000
    assert {module.split(".")[0] for group, module, _ in sources if group == "third-party"} == {
        name.split(".")[0] for name in PACKAGES
    }
    assert not [module for _, module, _ in sources if ".tests." in module or module.startswith("test.")]


# ---------------------------------------------------------------------------------------------- the digits


def cmc1_and_map(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """By L2, every row a query, itself excluded."""
    distances = np.square(vectors[:, None] - vectors[None]).sum(-1)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :-1]
    relevant = labels[order] == labels[:, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return float(relevant[:, 0].mean()), float(((precision * relevant).sum(1) / relevant.sum(1)).mean())


def test_the_new_digits_network_is_clearly_better_than_the_old_one(digits: DigitsInput) -> None:
    gallery = pq.read_table(digits.gallery)
    labels = gallery["label"].to_numpy()
    assert len(list(digits.gallery.iterdir())) == 4
    assert gallery.num_rows == digits.num_items == 897
    assert sorted(set(labels.tolist())) == list(range(10))
    old = gallery["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, OLD_DIM)
    images = {"image": gallery["image"].to_pylist()}
    np.testing.assert_allclose(DigitsEmbedder(str(digits.old_weights))(images, "item"), old, atol=1e-4)
    new = DigitsEmbedder(str(digits.new_weights))(images, "item")
    assert new.shape == (897, NEW_DIM)
    old_cmc, old_map = cmc1_and_map(old, labels)
    new_cmc, new_map = cmc1_and_map(new, labels)
    assert new_cmc > old_cmc + 0.1
    assert new_map > old_map + 0.15
    with np.load(digits.classifier) as classifier:
        predicted = (new @ classifier["weight"].T + classifier["bias"]).argmax(1)
    assert (predicted == labels).mean() > 0.95


def test_a_second_build_of_the_digits_writes_the_same_up_to_rounding(digits: DigitsInput, tmp_path: Path) -> None:
    again = build_digits(tmp_path)
    assert sorted(bytes_under(tmp_path)) == sorted(bytes_under(digits.gallery.parent))
    found, expected = pq.read_table(again.gallery), pq.read_table(digits.gallery)
    assert found.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    vectors = [table["embedding"].combine_chunks().flatten().to_numpy() for table in (found, expected)]
    # Two trainings: roundings grow, but stay far below what another seed changes.
    np.testing.assert_allclose(*vectors, atol=0.01 * np.abs(vectors[1]).max())
