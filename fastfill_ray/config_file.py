"""A config as it is written: a YAML file, and ``a.b=c`` overrides of it. No message repeats a value."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from fastfill_ray.errors import ConfigError

_MAX_CONFIG_BYTES = 1 << 20
# The parser lets the last two out: for dates that do not exist, and for nesting without end.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        ConfigError: it cannot be read, is too large, no YAML, or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML config") from None
    if len(data) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: {len(data)} bytes; a config has at most {_MAX_CONFIG_BYTES}")
    try:
        values = yaml.safe_load(data)
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: not YAML: {_yaml_fault(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}; a mapping of sections is expected")
    return values


def _yaml_fault(error: Exception) -> str:
    """What the parser says and where, without the line and the words that it quotes: they may be secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = re.sub(r"""(['"])(?!<[a-z ]+>\1).{2,}\1""", "...", error.problem or "", flags=re.DOTALL)
        return words if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {words}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"position {error.position}: {error.reason}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a value cannot be read, such as a date that does not exist"


def copied(value: Any) -> Any:
    """Nested mappings as fresh dicts, so that overrides do not write into the caller's."""
    return {key: copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def set_value(values: dict[str, Any], override: str, sections: Container[str]) -> None:
    """Apply one ``a.b=c``. Messages name its key, if that begins with a section's name, and never its value.

    Args:
        sections: the keys that a config has.

    Raises:
        ConfigError: it is not of that form, not YAML, or what should be a section holds a value.
    """
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    named = re.match(r"[\w.]*", key.strip())
    shown = named[0] if named is not None and keys[0] in sections else "..."
    if not equals or not key:
        raise ConfigError(f"--set {shown}: a.b=c is expected, such as pairs.count=1000")
    *parents, last = keys
    for parent in parents:
        inner = values.setdefault(parent, {})
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {shown}: {parent} holds {type(inner).__name__}, it is not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except _NOT_YAML:
        raise ConfigError(f"--set {shown}: the value is not YAML") from None
