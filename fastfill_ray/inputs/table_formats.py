"""Folders that belong to a table format: their Parquet files hold rows that are deleted or replaced.

A Delta, Iceberg, Lance or Hudi table is what its own log says, and the files of its folder are more than that. Such a
folder is refused with the command that makes a plain list of files, or plain Parquet files, of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.folder import Folder, Tree

Format = Literal["Delta", "Iceberg", "Lance", "Hudi"]

# What lies in a table's folder: (format, the beginning of a path below it, the path's ending). Below `metadata` and
# `_versions` there may be much else.
_MARKS: tuple[tuple[Format, str, str], ...] = (
    ("Delta", "_delta_log/", ""),
    ("Hudi", ".hoodie/", ""),
    ("Lance", "_versions/", ".manifest"),
    ("Iceberg", "metadata/", ".metadata.json"),
    # Sorted behind a thousand others that begin with a digit: a store lists by pages.
    ("Iceberg", "metadata/v", ".metadata.json"),
)


@dataclass(frozen=True)
class Table:
    """A table's folder, and of an Iceberg table the newest metadata file by its number."""

    format: Format
    folder: str
    metadata: str = ""


def refuse_tables(path: str, tree: Tree, folder: Folder, pool: ThreadPoolExecutor) -> None:
    """Refuse a folder that is a table, holds one, or lies in one, as does what its links lead to.

    Args:
        path: the folder as it was given.
        pool: what asks the store for the folders above: 5 requests for each, and more for an Iceberg table.

    Raises:
        InputError: names the format, its folder, and the command that gives plain files.
    """
    places = list(dict.fromkeys(above for place in folder.places for above in _with_parents(place)))
    tables = pool.map(lambda place: _table_at(place, partial(tree.names_below, place)), places)
    table = next(filter(None, tables), None)
    if table is None:
        table = _table_below(folder.places[0], [*folder.files, *folder.skipped])
    if table is not None:
        table = replace(table, folder=tree.url(table.folder))
        kind = f"an {table.format}" if table.format == "Iceberg" else f"a {table.format}"
        where = "is" if path.rstrip("/") == table.folder else f"holds or belongs to {table.folder},"
        raise InputError(
            f"input {path!r} {where} {kind} table: rows that were deleted or replaced still lie in its files "
            f"and would be read as if they were alive. {_REMEDIES[table.format](table)}"
        )


def _with_parents(place: str) -> Iterator[str]:
    """The place and the folders above it, up to the bucket or the root of the file system."""
    while place:
        yield place
        place, below = os.path.dirname(place), place
        if place == below:
            return


def _table_at(place: str, names_below: Callable[[str], Iterator[list[str]]]) -> Table | None:
    """The table whose folder this is: the first page of each listing tells, as a folder may hold millions of files."""
    for kind, start, end in _MARKS:
        pages = names_below(start)
        if names := [name for name in next(pages, []) if name.endswith(end)]:
            if kind != "Iceberg":
                return Table(kind, place)
            # The newest may be on the last page.
            names += [name for page in pages for name in page if name.endswith(end)]
            return Table(kind, place, _newest(names))
    return None


def _table_below(place: str, below: Sequence[str]) -> Table | None:
    """The first table at or below a folder.

    Args:
        below: every path below the folder; folders that were not looked into end with a slash.
    """
    tables: dict[tuple[str, Format], list[str]] = {}
    for path in below:
        if (found := _place(path)) is not None:
            tables.setdefault(found, []).append(path.removeprefix(found[0]).lstrip("/"))
    if not tables:
        return None
    above, kind = min(tables)
    return Table(kind, f"{place}/{above}".rstrip("/"), _newest(tables[above, kind]) if kind == "Iceberg" else "")


def _place(path: str) -> tuple[str, Format] | None:
    """(the table's folder, format) that one path below a folder gives away."""
    *folders, name = path.split("/")
    if folders[-1:] == ["_delta_log"]:
        return "/".join(folders[:-1]), "Delta"
    if folders[-1:] == [".hoodie"]:
        return "/".join(folders[:-1]), "Hudi"
    if folders[-1:] == ["metadata"] and name.endswith(".metadata.json"):
        return "/".join(folders[:-1]), "Iceberg"
    if name.endswith(".lance"):
        return "/".join(folders[:-1] if folders[-1:] == ["data"] else folders), "Lance"
    return None


def _newest(names: Iterable[str]) -> str:
    def number(name: str) -> tuple[int, str]:
        digits = re.search(r"/v?(\d+)", f"/{name.rpartition('/')[2]}")
        return (int(digits[1]) if digits else -1, name)

    return max(names, key=number)


def _delta(table: Table) -> str:
    files = (
        f"from deltalake import DeltaTable; t = DeltaTable({_text(table.folder)}); "
        'assert "deletionVectors" not in (t.protocol().reader_features or []), "deletion vectors: copy the rows"; '
        'print(*t.file_uris(), sep="\\n")'
    )
    copy = (
        "import pyarrow.dataset as ds; from deltalake import DeltaTable, QueryBuilder; ds.write_dataset("
        f'QueryBuilder().register("t", DeltaTable({_text(table.folder)})).execute("select * from t"), "live", '
        'format="parquet")'
    )
    return (
        f"This prints its live files, to be given as a list: {_python(files)} . If it says that there are deletion "
        f"vectors, copy the live rows into the folder live and give that: {_python(copy)}"
    )


def _iceberg(table: Table) -> str:
    copy = (
        "import pyarrow.dataset as ds; from pyiceberg.table import StaticTable; ds.write_dataset("
        f"StaticTable.from_metadata({_text(f'{table.folder}/{table.metadata}')}).scan().to_arrow_batch_reader(), "
        '"live", format="parquet")'
    )
    return (
        f"This copies the live rows into the folder live, to be given instead: {_python(copy)} (the metadata file is "
        "the newest by its number; your catalog knows the current one)"
    )


def _lance(table: Table) -> str:
    copy = (
        f"import lance, pyarrow.dataset as ds; ds.write_dataset(lance.dataset({_text(table.folder)}).scanner()"
        '.to_reader(), "live", format="parquet")'
    )
    return f"This copies the live rows into the folder live, to be given instead: {_python(copy)}"


def _hudi(table: Table) -> str:
    copy = f'spark.read.format("hudi").load({_text(table.folder)}).write.parquet("live")'
    return f"This copies the live rows into the folder live, to be given instead; in a Spark session: {copy}"


_REMEDIES: dict[Format, Callable[[Table], str]] = {
    "Delta": _delta,
    "Iceberg": _iceberg,
    "Lance": _lance,
    "Hudi": _hudi,
}


def _text(value: str) -> str:
    """A Python string in double quotes, so that the whole can stand in single ones in a shell."""
    return json.dumps(value, ensure_ascii=False)


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"
