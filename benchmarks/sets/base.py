"""What a benchmark set holds, how it is split, and its file.

Legend: N items, D old and E new dimensions, C classes, S dimensions of side information, Q queries.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.errors import CorruptFile

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Optional fields of a set, absent from its file where they are None.
_OPTIONAL = ("groups", "side", "queries_new", "queries_old", "query_labels", "query_item", "train_rows")


class SplitSizes(NamedTuple):
    """Items of each part; ``audit`` is a cap, the last part takes what is left up to it."""

    train: int
    calibration: int
    audit: int


@dataclass(frozen=True)
class BenchmarkSet:
    """One gallery under two models.

    Attributes:
        name: as in ``NAMES``.
        description: what the items are, which models made the vectors, how many.
        metric: how both models' vectors are compared.
        old: (N, D) float32.
        new: (N, E) float32.
        labels: (N,) int64 class of each item.
        sizes: of the parts that `split` makes.
        groups: (N,) object (str) a partition that fairness is measured over, or None.
        classifier: the new model's own linear classifier, weight (C, E) and bias (C,) float32 whose class indices are
            `labels`, or None.
        side: (N, S) float32 cheap information about each item which was to be had when the old vectors were made (FCT's
            side information, Ramanujan et al., CVPR 2022), or None.
        queries_new: (Q, E) float32, or None where the items are their own queries.
        queries_old: (Q, D) float32, or None.
        query_labels: (Q,) int64, or None.
        query_item: (Q,) int64 row of the one item that each query seeks, or None.
        train_rows: (T,) int64 the items that `split` always gives as train, or None where it draws them. They are not
            part of the gallery proper: the networks were trained on them.
    """

    name: str
    description: str
    metric: Literal["cosine", "l2"]
    old: Floats
    new: Floats
    labels: Ints
    sizes: SplitSizes
    groups: NDArray[np.object_] | None = None
    classifier: tuple[Floats, Floats] | None = None
    side: Floats | None = None
    queries_new: Floats | None = None
    queries_old: Floats | None = None
    query_labels: Ints | None = None
    query_item: Ints | None = None
    train_rows: Ints | None = None

    def split(self, seed: int) -> dict[str, Ints]:
        """Disjoint rows, ascending, of "train", "calibration" and "audit": the same for the same seed.

        The map is fitted on train, whatever is tuned is tuned on calibration, audit is only measured. A query goes with
        the part that holds its item.
        """
        order = np.random.default_rng(seed).permutation(len(self.labels))
        if self.train_rows is None:
            train, rest = order[: self.sizes.train], order[self.sizes.train :]
        else:
            train, rest = self.train_rows, order[~np.isin(order, self.train_rows)]
        calibration, audit = rest[: self.sizes.calibration], rest[self.sizes.calibration :][: self.sizes.audit]
        return {"train": np.sort(train), "calibration": np.sort(calibration), "audit": np.sort(audit)}


def save(path: Path, built: BenchmarkSet) -> None:
    """Write `built` to an .npz, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "name": np.array(built.name),
        "description": np.array(built.description),
        "metric": np.array(built.metric),
        "old": built.old,
        "new": built.new,
        "labels": built.labels,
        "sizes": np.array(built.sizes, dtype=np.int64),
    }
    arrays |= {name: getattr(built, name) for name in _OPTIONAL if getattr(built, name) is not None}
    if built.groups is not None:
        arrays["groups"] = built.groups.astype(np.str_)  # objects would need pickle
    if built.classifier is not None:
        arrays["weight"], arrays["bias"] = built.classifier
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
    np.savez(temporary, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def read(path: Path) -> BenchmarkSet:
    """The set that `save` wrote to `path`.

    Raises:
        CorruptFile: `path` is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        groups = arrays.get("groups")
        fields: dict[str, Any] = {name: arrays.get(name) for name in _OPTIONAL}
        fields["groups"] = None if groups is None else groups.astype(object)
        fields["classifier"] = (arrays["weight"], arrays["bias"]) if "weight" in arrays else None
        fields |= {name: str(arrays[name]) for name in ("name", "description", "metric")}
        fields |= {name: arrays[name] for name in ("old", "new", "labels")}
        return BenchmarkSet(**fields, sizes=SplitSizes(*arrays["sizes"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CorruptFile(f"benchmark set {path}: {error}. Delete it: it is built anew.") from error


def check(built: BenchmarkSet) -> BenchmarkSet:
    """`built` itself, if its fields agree in length, type and range.

    Raises:
        ValueError: they do not.
    """
    num_items, num_queries = len(built.labels), 0 if built.query_item is None else len(built.query_item)
    per_item = ("old", "new", "labels", "groups", "side")
    per_query = ("queries_new", "queries_old", "query_labels", "query_item")
    for names, length in ((per_item, num_items), (per_query, num_queries)):
        for name in names:
            column = getattr(built, name)
            if column is not None and len(column) != length:
                raise ValueError(f"set {built.name!r}: {name} has {len(column)} rows, expected {length}")
    for field in dataclasses.fields(built):
        column = getattr(built, field.name)
        if isinstance(column, np.ndarray) and column.dtype != object:
            if column.dtype not in (np.float32, np.int64):
                raise ValueError(f"set {built.name!r}: {field.name} is {column.dtype}, expected float32 or int64")
            if not np.isfinite(column).all():
                raise ValueError(f"set {built.name!r}: {field.name} has values that are not finite")
    if built.classifier is not None:
        shapes = built.classifier[0].shape, built.classifier[1].shape
        classes = int(built.labels.max()) + 1
        if shapes != ((classes, built.new.shape[1]), (classes,)):
            raise ValueError(f"set {built.name!r}: classifier has shapes {shapes} for {classes} classes")
    return built
