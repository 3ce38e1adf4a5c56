"""What an embedder is, how a config's ``module:Class`` becomes one, and how its faults are held to single rows.

Legend: n rows of one batch, dim components per vector.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np

from fastfill_ray.errors import EmbedderError
from fastfill_ray.sanitize import hide, one_line
from fastfill_ray.types import F32

Role = Literal["item", "query"]
R = TypeVar("R")
MAX_REASON_CHARS = 200
_RAISED = "embedder raised "


class Embedder(Protocol):
    """A class built once per actor with the config's ``kwargs``; its instances are called with one batch at a time."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> Any:
        """Embed a batch.

        Args:
            batch: payload columns by name, all of n rows.
            role: what the rows are. Models with query and passage prefixes need it.

        Returns:
            (n, dim) float32, rows in the order of the batch. Other real number types and CPU tensors are converted.

        Raises:
            EmbedderError: it cannot go on at all; the run ends. Everything else that it raises is a fault of the rows.
        """


class CallFailed(Exception):
    """A call brought no vectors, and the text is the whole reason."""


def load_embedder(spec: str, kwargs: Mapping[str, Any], *, retry_delays_s: Sequence[float] = ()) -> Embedder:
    """Build the embedder that `spec`, "module:Class", names.

    Importing runs that module's code: take `spec` from the user's own config only, never from a log or an artefact.
    The values of `kwargs` are redacted from here on in what this process says of exceptions.

    Args:
        retry_delays_s: waits between calls of a constructor that raises; there is one call more than waits.

    Raises:
        EmbedderError: not of that form, not importable, no such class, its constructor raised, or not callable.
    """
    factory = find_factory(spec, kwargs)
    embedder = build(f"embedder {spec!r}: its constructor", factory, kwargs, retry_delays_s)
    if not callable(embedder):
        raise EmbedderError(f"embedder {spec!r}: its instances cannot be called; define __call__(self, batch, role).")
    return cast(Embedder, embedder)


def find_factory(spec: str, kwargs: Mapping[str, Any]) -> Callable[..., object]:
    """What `spec` names: a class, or a function that can be called with `kwargs`. See ``load_embedder``."""
    hide(kwargs)
    module_name, colon, class_name = spec.partition(":")
    if not (colon and module_name and class_name):
        raise EmbedderError(f'embedder {spec!r}: expected "module:Class", such as "my_pkg.models:Embedder".')
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        raise EmbedderError(
            f"embedder {spec!r}: importing module {module_name!r} raised {describe(error)}. "
            "Install it, or make it importable where the job runs."
        ) from None
    factory = getattr(module, class_name, None)
    if factory is None:
        raise EmbedderError(
            f"embedder {spec!r}: module {module_name!r} has no attribute {class_name!r}.{_similar(class_name, module)}"
        )
    if not callable(factory) or (inspect.isfunction(factory) and not _takes(factory, kwargs)):
        raise EmbedderError(
            f"embedder {spec!r}: expected a class, found {type(factory).__name__}. Write a class: __init__ loads the "
            "model and takes the kwargs, __call__(self, batch, role) embeds."
        )
    return cast(Callable[..., object], factory)


def build(what: str, factory: Callable[..., R], kwargs: Mapping[str, Any], retry_delays_s: Sequence[float]) -> R:
    """factory(**kwargs), called once more after each of the waits while it raises.

    Args:
        what: the factory, as an error's text begins.
    """
    for delay_s in (*retry_delays_s, None):
        try:
            return factory(**kwargs)
        except BaseException as error:
            if delay_s is None:
                # The exception may hold values of kwargs, so it stays out of the traceback, too.
                raise EmbedderError(f"{what}, called with kwargs {sorted(kwargs)}, raised {describe(error)}") from None
        time.sleep(delay_s)
    raise AssertionError("unreachable: the last call returns or raises")


def _similar(name: str, module: ModuleType) -> str:
    """ " Did you mean ...?", or "" where no class of the module is called like it."""
    classes = [each for each, value in vars(module).items() if inspect.isclass(value)]
    found = difflib.get_close_matches(name, classes, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _takes(function: Callable[..., object], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function can be called with kwargs alone, and so may return an embedder."""
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError:
        return False
    return True


def embed_rows(
    embedder: Embedder, batch: Mapping[str, Sequence[Any]], role: Role, dim: int, *, metric: str
) -> tuple[F32, dict[int, str]]:
    """Embed a batch so that a bad row costs nobody but itself.

    Where the embedder raises, or returns anything but n real vectors of `dim`, the batch is halved until the offending
    rows stand alone: at most 2 b (1 + log2 n) calls more for b of them. Vectors are checked row by row.

    Args:
        embedder: called with slices of the batch.
        batch: payload columns by name, all of n rows; each is sliced as ``column[start:stop]``.
        role: handed through.
        dim: components that each vector must have.
        metric: "cosine", "ip" or "l2"; with cosine a vector of norm zero has no direction and is unusable.

    Returns:
        vectors: (n, dim) float32, C-contiguous; zeros where the row is unusable.
        unusable: {row: reason}, rows ascending. A reason is one line of at most 200 characters: "embedder raised
            ValueError: ...", "wrong_shape: found (1, 3), expected (1, 384)", "wrong_dtype: ...", "non_finite" (also a
            float32 norm that overflows: such a vector has no score), "zero_norm".

    Raises:
        EmbedderError: the embedder raised it.
        ValueError: the columns differ in length, or there is none.
    """
    lengths = {name: len(column) for name, column in batch.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"a batch needs columns of one length, found {lengths}")
    num_rows = next(iter(lengths.values()))
    vectors = np.zeros((num_rows, dim), dtype=np.float32)
    unusable: dict[int, str] = {}
    pending = [(0, num_rows)] if num_rows else []
    while pending:
        start, stop = pending.pop()
        found = _attempt(
            embedder, {name: column[start:stop] for name, column in batch.items()}, role, stop - start, dim
        )
        if not isinstance(found, str):
            vectors[start:stop] = found
        elif stop - start == 1:
            unusable[start] = found
        else:
            middle = (start + stop) // 2
            pending += [(middle, stop), (start, middle)]
    # One pass finds NaN, inf and values whose squares overflow: none of them can be scored in float32.
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("nd,nd->n", vectors, vectors)
    faults = {"non_finite": ~np.isfinite(squared)}
    if metric == "cosine":
        faults["zero_norm"] = squared == 0
    for reason, rows in faults.items():
        for row in np.flatnonzero(rows).tolist():
            unusable.setdefault(row, reason)
    vectors[list(unusable)] = 0
    return vectors, dict(sorted(unusable.items()))


def _attempt(embedder: Embedder, batch: dict[str, Sequence[Any]], role: Role, num_rows: int, dim: int) -> F32 | str:
    """The vectors of one call, (num_rows, dim) float32 with values unchecked, or why there are none."""
    try:
        found = np.asarray(embedder(batch, role))
    except EmbedderError:
        raise
    except CallFailed as failed:
        return one_line(str(failed), MAX_REASON_CHARS)
    except BaseException as error:  # an exit, an interrupt, a panic of native code: none of them ends the run
        return raised(error)
    if found.shape != (num_rows, dim):
        return f"wrong_shape: found {found.shape}, expected {(num_rows, dim)}"
    if found.dtype.kind not in "fiu":
        return f"wrong_dtype: found {found.dtype}, expected float32"
    with np.errstate(over="ignore"):  # becomes inf, which is reported as such
        return found.astype(np.float32, copy=False)


def raised(error: BaseException) -> str:
    """The reason why rows have no vectors whose call raised `error`."""
    return one_line(f"{_RAISED}{describe(error)}", MAX_REASON_CHARS)


def may_pass(reason: str) -> bool:
    """Whether the same rows may be embedded a little later: what was raised may have been the moment's fault."""
    return reason.startswith(_RAISED)


def describe(error: BaseException) -> str:
    """ "ValueError: what it says"."""
    return f"{type(error).__name__}: {error}"
