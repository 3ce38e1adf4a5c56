"""An embedder's work for the processor, done for its rows before they reach it, where there is no accelerator.

An embedder offers it by two names beside ``__call__``. Vectors must be the same either way::

    @classmethod
    def preparer(cls, **kwargs) -> Preparer | None: ...
    def embed_prepared(self, prepared: dict[str, pa.Array], role: Role) -> Any: ...

`preparer` is called with the kwargs of the constructor, in a process with one CPU that neither loads the model nor has
the accelerator. `embed_prepared` gets the columns that the preparer returned, of any rows in any order, and returns
what ``__call__`` returns for these rows. What a preparer cannot prepare reaches ``__call__`` as it is, so that
faults of rows are found there, as without a preparer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import pyarrow as pa

from fastfill_ray.embedders.protocol import Embedder, Role, build, describe, find_factory
from fastfill_ray.errors import EmbedderError


class Preparer(Protocol):
    """Makes columns that ``embed_prepared`` takes instead of the payload. It may be called again with the same rows."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> Mapping[str, Any]:
        """Prepare a batch.

        Args:
            batch: as ``Embedder.__call__`` takes it: payload columns by name, all of n rows.

        Returns:
            Columns by name, a row for each row of the batch, in its order: Arrow arrays, or what ``pyarrow.array``
            takes. Their types must not depend on the rows.
        """


class PreparedEmbedder(Embedder, Protocol):
    """An embedder that also takes what its preparer made."""

    def embed_prepared(self, prepared: dict[str, pa.Array], role: Role) -> Any:
        """As ``__call__``: (n, dim) float32 of n prepared rows."""


def load_preparer(spec: str, kwargs: Mapping[str, Any], *, retry_delays_s: Sequence[float] = ()) -> Preparer | None:
    """The preparer of the embedder that `spec` names; None where it offers none. Arguments: see ``load_embedder``.

    A class that overrides ``__init__`` or ``__call__`` but not ``preparer`` offers none: what it inherits was written
    for other kwargs, or other vectors.

    Raises:
        EmbedderError: `spec` names no embedder, ``preparer`` raised or returned nothing that can be called, or there is
            no ``embed_prepared``.
    """
    factory = find_factory(spec, kwargs)
    if not inspect.isclass(factory) or not _is_up_to_date(factory):
        return None
    name = f"embedder {spec!r}: its `preparer`"
    preparer = build(name, factory.preparer, kwargs, retry_delays_s)  # type: ignore[attr-defined]  # it is there
    if preparer is None:
        return None
    if not callable(preparer):
        raise EmbedderError(f"{name} returned {type(preparer).__name__}: expected what can be called, or None.")
    if not callable(getattr(factory, "embed_prepared", None)):
        raise EmbedderError(f"{name} needs a method embed_prepared(self, prepared, role), which is not there.")
    return cast(Preparer, preparer)


def num_tokens(embedder: Embedder) -> int | None:
    """That the embedder has embedded so far, if it counts them as ``num_tokens``."""
    return getattr(embedder, "num_tokens", None)


def _is_up_to_date(embedder: type) -> bool:
    """Whether the class, or the base that defines ``preparer``, is the last one to define how rows are embedded."""
    defines = {
        name: next((place for place, base in enumerate(embedder.__mro__) if name in vars(base)), len(embedder.__mro__))
        for name in ("preparer", "__init__", "__call__")
    }
    return defines["preparer"] < len(embedder.__mro__) and defines["preparer"] == min(defines.values())


def prepare_rows(preparer: Preparer, batch: Mapping[str, Sequence[Any]], role: Role) -> pa.StructArray | None:
    """Prepare a batch so that a row that cannot be prepared costs nobody but itself.

    Where the preparer raises, or returns anything but a row per row, the batch is halved until the offending rows stand
    alone.

    Args:
        batch: payload columns by name, all of n rows.

    Returns:
        (n,) structs of the prepared columns, null where a row could not be prepared. None if no row could.
    """
    num_rows = len(next(iter(batch.values())))
    pieces: list[pa.StructArray | None] = []  # of rows in their order; None: a single row that has none
    kind: pa.DataType | None = None
    pending = [(0, num_rows)] if num_rows else []
    while pending:
        start, stop = pending.pop()
        try:
            piece = _attempt(preparer, {name: column[start:stop] for name, column in batch.items()}, role)
        except EmbedderError:  # it cannot go on at all: the embedder will say so
            return None
        if piece is not None and len(piece) == stop - start and kind in (None, piece.type):
            kind = piece.type
            pieces.append(piece)
        elif stop - start == 1:
            pieces.append(None)
        else:
            middle = (start + stop) // 2
            pending += [(middle, stop), (start, middle)]
    if kind is None:
        return None
    return pa.concat_arrays([pa.nulls(1, kind) if piece is None else piece for piece in pieces])


def _attempt(preparer: Preparer, batch: dict[str, Sequence[Any]], role: Role) -> pa.StructArray | None:
    try:
        return _made(preparer, batch, role)
    except EmbedderError:
        raise
    except BaseException:  # whatever it is, the embedder meets it again where its reason is kept
        return None


def _made(preparer: Preparer, batch: dict[str, Sequence[Any]], role: Role) -> pa.StructArray:
    columns = {
        name: column if isinstance(column, pa.Array) else pa.array(column)
        for name, column in preparer(batch, role).items()
    }
    for name, column in columns.items():
        if (kind := _unusable(column.type)) is not None:
            raise TypeError(f"column {name!r} is of type {kind}, from which Arrow takes no rows; use a plain type")
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))


def _unusable(kind: pa.DataType) -> pa.DataType | None:
    """The type in `kind`, or itself, of which rows cannot be taken and filled up with nulls."""
    own = ("is_union", "is_string_view", "is_binary_view", "is_run_end_encoded", "is_list_view", "is_large_list_view")
    if any(getattr(pa.types, name)(kind) for name in own):
        return kind
    return next((found for n in range(kind.num_fields) if (found := _unusable(kind.field(n).type)) is not None), None)


def why_not_prepared(preparer: Preparer, batch: Mapping[str, Sequence[Any]], role: Role) -> str:
    """What is wrong with what a preparer makes of a batch that it cannot prepare, for people."""
    try:
        made = _made(preparer, dict(batch), role)
    except BaseException as error:
        return describe(error)
    return f"it returned {len(made)} rows for {len(next(iter(batch.values())))}"
