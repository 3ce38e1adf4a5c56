"""Every set by name, and its cache: built once per folder and builder version."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from benchmarks.sets.base import BenchmarkSet, check, read, save

# The module and function that build each set; imported when asked for, so that digits needs neither fonts nor MiniLM.
_BUILDERS = {
    "digits": ("benchmarks.sets.digits", "build_digits"),
    "docstrings": ("benchmarks.sets.docstrings", "build_docstrings"),
    "glyphs": ("benchmarks.sets.glyphs", "build_glyphs"),
    "glyphs-biased": ("benchmarks.sets.glyphs", "build_glyphs_biased"),
    "operations": ("benchmarks.sets.operations", "build_operations"),
}
NAMES = tuple(_BUILDERS)


def load_set(name: str, cache: Path) -> BenchmarkSet:
    """The set `name` out of the folder `cache`, built and written there first unless this builder already has.

    Built vectors depend on the installed versions (of the packages whose docstrings they are, of torch); the cache
    keeps one build, so that all who read it compare the same vectors.

    Raises:
        ValueError: no set has that name.
        CorruptFile: the cached file cannot be read.
        EmbedderError, InputError: a package of the extra `bench` is not installed.
    """
    if name not in _BUILDERS:
        raise ValueError(f"benchmark set {name!r}: expected one of {', '.join(NAMES)}")
    module = import_module(_BUILDERS[name][0])
    path = Path(cache) / f"{name}-v{module.BUILDER_VERSION}.npz"
    if not path.is_file():
        build = getattr(module, _BUILDERS[name][1])
        save(path, check(build()))
    return read(path)
