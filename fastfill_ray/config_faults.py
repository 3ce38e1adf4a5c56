"""What is wrong with a config, in words: the key, what was found, what is allowed, and the key that may be meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

# Tag of what stands there where `auto` could stand, too.
GIVEN = "given"


def explain(fault: Any, model: type[BaseModel]) -> str:
    """One fault of ``ValidationError.errors()`` as `key: what was found; what is allowed`.

    Args:
        model: of the whole config.
    """
    path = [part for part in fault["loc"] if part != GIVEN]
    key = ".".join(str(part) for part in path)
    if fault["type"] == "extra_forbidden":
        allowed = list(_part_at(model, path[:-1]).model_fields)
        return f"{key}: unknown key{_did_you_mean(model, path, allowed)}; allowed here: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing; it has no default"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "tuple_type":
        message = "a list is expected, such as [a, b]"
    if fault["type"] == "too_short":
        message = f"a list of at least {fault['ctx']['min_length']} is expected"
    if fault["type"] == "value_error":
        return message
    if fault["type"] in ("unsafe_url", "paths", "command"):
        return f"{key}: {message}"
    if fault["loc"][-1] == GIVEN:
        message += ", or auto"
    return f"{key}: found {_shown(fault)}; {message}" if key else message


def _part_at(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel]:
    """The model of a section, optional or not."""
    part: Any = model
    for name in path:
        annotation = part.model_fields[name].annotation
        part = next((a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)), annotation)
    section: type[BaseModel] = part
    return section


def _did_you_mean(model: type[BaseModel], path: Sequence[Any], allowed: Sequence[str]) -> str:
    """A key that an unknown one may be meant to be: one like it here, or one of that name in another section."""
    *section, name = map(str, path)
    parts = [key for key in allowed if key.startswith(f"{name}_") or key.endswith(f"_{name}")]
    if here := (difflib.get_close_matches(name, allowed, n=1) or parts[:1]):
        return f" (did you mean {'.'.join([*section, here[0]])}?)"
    sections = {key: _part_at(model, [key]) for key in model.model_fields}
    elsewhere = [
        f"{key}.{name}"
        for key, part in sections.items()
        if isinstance(part, type) and issubclass(part, BaseModel) and name in part.model_fields
    ]
    elsewhere += [name] if section and name in model.model_fields else []
    return f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else ""


# The value should have been a mapping: a section, or kwargs. What stands there instead may be one of its values.
_NO_MAPPING = {"model_type", "model_attributes_type", "dict_type", "mapping_type"}


def _shown(fault: Any) -> str:
    """The value that a fault is about; only its type where that may be, or hold, a value of kwargs."""
    value = fault["input"]
    inside = isinstance(value, Mapping | list | tuple | set) and any(
        isinstance(part, str | Mapping | list) for part in value
    )
    if value and (inside or fault["type"] in _NO_MAPPING or "kwargs" in fault["loc"]):
        return f"{type(value).__name__} (not shown: it may hold secrets)"
    return repr(value)
