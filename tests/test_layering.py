"""What may import what, what importing costs, and what no file of ours may do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import fastfill_ray

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "fastfill_ray"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "jobs").rglob("*.py")])

# Larger numbers import smaller ones; of one number, only a part itself.
LEVELS = {
    "sanitize": 0,
    "wording": 0,
    "errors": 1,
    "types": 1,
    "config_command": 1,
    "config_faults": 1,
    "config_file": 2,
    "config": 3,
    "process": 2,
    "retrieval": 3,
    "ordering": 4,
    "experiment": 5,
    "log": 6,
    "storage": 7,
    "alignment": 8,
    "embedders": 8,
    "index": 8,
    "inputs": 8,
    "engine": 9,
    "stages": 10,
    "report": 10,
    "backfill": 11,
    "search": 11,
    "shadow": 11,
    "export": 11,
    "mapped": 10,
    "simulation": 11,
    "cli": 12,
    "__init__": 13,
    "jobs": 14,
}
PURE = ("retrieval", "ordering", "experiment", "log")
# No I/O, clock, global random or engine: what the pure parts may import at all.
PURE_IMPORTS = {
    "__future__", "collections", "dataclasses", "enum", "functools", "hashlib", "itertools", "json", "math", "re",
    "typing", "numpy", "pydantic", "fastfill_ray",
}  # fmt: skip


def part_of(path: Path) -> str:
    """The part of the layout that a source file belongs to."""
    relative = path.relative_to(REPOSITORY)
    return "jobs" if relative.parts[0] == "jobs" else Path(relative.parts[1]).stem


@cache  # each test looks at every file
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(), str(path))))


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Dotted names of every module or object that a file imports, wherever the import stands."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute, "" for anything else."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def calls_of(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.Call]]:
    return ((dotted(node.func), node) for node in nodes if isinstance(node, ast.Call))


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_down_only(path: Path) -> None:
    part = part_of(path)
    for imported in imports_of(nodes_of(path)):
        root, _, rest = imported.partition(".")
        if root != "fastfill_ray":
            continue
        first = rest.partition(".")[0]
        other = first if first in LEVELS else "__init__"  # `import fastfill_ray`, or one of its public names
        # The help text of the command is the package's docstring; jobs use the public names.
        allowed = LEVELS[other] < LEVELS[part] or other == part or (part == "cli" and imported == "fastfill_ray")
        assert allowed, f"{name(path)} ({part}) imports {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_the_engine_imports_ray(path: Path) -> None:
    roots = {imported.partition(".")[0] for imported in imports_of(nodes_of(path))}
    assert "ray" not in roots or part_of(path) == "engine"


@pytest.mark.parametrize("path", sorted(p for part in PURE for p in (PACKAGE / part).glob("*.py")), ids=name)
def test_the_pure_parts_are_pure(path: Path) -> None:
    nodes = nodes_of(path)
    assert {imported.partition(".")[0] for imported in imports_of(nodes)} <= PURE_IMPORTS
    for called, call in calls_of(nodes):
        assert called not in {"open", "input", "print"}
        if ".random." in called:
            assert called.endswith(".random.default_rng"), f"{called} uses numpy's global random state"
            assert call.args, "an unseeded generator"


LOADERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {
    "eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "torch.load", "torch.jit.load", "torch.hub.load", "os.system", "os.popen",
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_that_is_read_is_ever_executed(path: Path) -> None:
    nodes = nodes_of(path)
    assert not LOADERS & {part for imported in imports_of(nodes) for part in imported.split(".")}
    for called, call in calls_of(nodes):
        assert called not in CALLS, f"{name(path)}:{call.lineno} calls {called}"
        options = {option.arg: option.value for option in call.keywords}
        for option, safe in (("allow_pickle", False), ("shell", False), ("trust_remote_code", False)):
            if option in options:
                value = options[option]
                assert isinstance(value, ast.Constant), f"{name(path)}:{call.lineno}: {option}"
                assert value.value is safe, f"{name(path)}:{call.lineno}: {option}"
        if called in {"np.load", "numpy.load"}:
            assert "allow_pickle" in options, f"{name(path)}:{call.lineno}: np.load says allow_pickle=False"


def test_the_walk_sees_what_it_is_meant_to_forbid() -> None:
    code = "def f():\n    import ray.data\n    from torch import load\n    yaml.load(x)\n    eval('1')\n"
    nodes = list(ast.walk(ast.parse(code)))
    assert list(imports_of(nodes)) == ["ray.data", "torch.load"]
    assert [called for called, _ in calls_of(nodes)] == ["yaml.load", "eval"]
    assert {part_of(path) for path in SOURCES} == set(LEVELS)


def in_fresh_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("statement", "not_loaded"),
    [
        ("import fastfill_ray", {"ray", "torch", "faiss", "pyarrow", "s3fs", "numpy", "pydantic", "yaml"}),
        ("from fastfill_ray import BackfillConfig, load_config", {"ray", "torch", "faiss", "pyarrow", "s3fs"}),
        ("import fastfill_ray.cli", {"ray", "torch", "faiss", "pyarrow", "s3fs", "numpy"}),
        ("from fastfill_ray import open_index", {"ray", "torch", "s3fs"}),
        ("from fastfill_ray import simulate", {"ray", "faiss", "s3fs"}),
        ("import fastfill_ray.backfill, fastfill_ray.engine.in_process", {"ray", "s3fs"}),
        ("import fastfill_ray.search", {"ray", "torch", "s3fs"}),
        # A mistake in a config is told before what takes seconds to import.
        ("from fastfill_ray.cli import main\nmain(['run', '--config', 'none.yaml'])", {"ray", "torch", "faiss"}),
    ],
)
def test_importing_brings_in_only_what_is_used(statement: str, not_loaded: set[str]) -> None:
    loaded = json.loads(in_fresh_process(f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"))
    assert not not_loaded & {module.partition(".")[0] for module in loaded}


def test_the_public_names_are_these() -> None:
    assert fastfill_ray.__all__ == [
        "BackfillConfig",
        "BackfillResult",
        "FastfillError",
        "Index",
        "Simulation",
        "bake_queries",
        "load_config",
        "map_queries",
        "open_index",
        "run_backfill",
        "simulate",
    ]
    assert dir(fastfill_ray) == fastfill_ray.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastfill_ray.nothing


def test_a_star_import_brings_every_public_name_and_no_other() -> None:
    found = in_fresh_process(
        "before = set(dir())\nfrom fastfill_ray import *\nprint(*sorted(set(dir()) - before - {'before'}))"
    )
    assert found.split() == fastfill_ray.__all__
