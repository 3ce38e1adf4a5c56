"""Exports, as `fastfill-ray export` and ``fastfill_ray.bake_queries`` use them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from numpy.typing import ArrayLike

from fastfill_ray.config import load_config
from fastfill_ray.engine.interface import Engine
from fastfill_ray.errors import ConfigError, CorruptFile, FileMissing, UnusableQueries
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.retrieval.baking import Baking
from fastfill_ray.retrieval.query_vectors import finite_queries, query_matrix
from fastfill_ray.sanitize import printable
from fastfill_ray.stages.export import export, write_index
from fastfill_ray.stages.export_columns import GalleryColumns
from fastfill_ray.stages.export_folder import MANIFEST, read_manifest
from fastfill_ray.stages.export_manifest import ExportRequest, Manifest
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import open_files, place_of
from fastfill_ray.storage.paths import record_path
from fastfill_ray.types import F32


def read_export(folder: str, s3_endpoint: str | None = None) -> Manifest:
    """The manifest of the finished export in a folder.

    Raises:
        ConfigError: there is none.
        CorruptFile: it is damaged.
    """
    try:
        return read_manifest(open_files(folder, s3_endpoint=s3_endpoint))
    except FileMissing:
        raise ConfigError(
            f"--since {folder}: there is no {MANIFEST}. Give the folder of the finished export that the store holds."
        ) from None
    except CorruptFile:
        raise CorruptFile(
            f"--since {folder}: its {MANIFEST} is damaged. Restore it from a copy, or export the version as a whole, "
            "without --since, to another folder, and load that."
        ) from None


def gallery_columns(names: Sequence[str], config_path: str | None) -> GalleryColumns:
    """Columns of the gallery that a config names.

    Raises:
        ConfigError: there is no config, or it is wrong.
    """
    if config_path is None:
        raise ConfigError("--columns needs --config FILE: the gallery is read where your config says, never elsewhere")
    config = load_config(config_path)
    store = InputStore(config.storage.s3_endpoint, config.storage.anonymous)
    return GalleryColumns(tuple(names), store, config.gallery)


def export_version(
    root: str,
    to: str,
    request: ExportRequest,
    *,
    s3_endpoint: str | None = None,
    as_index: bool = False,
    engine: Engine | None = None,
    stream: TextIO | None = None,
) -> Manifest:
    """Write one version of an output root to a folder, see ``stages.export``.

    Args:
        to: a local folder or s3:// URL that holds nothing else, not under the root.
        as_index: write one FAISS index beside the files, too; not of what changed alone.
        engine: by default Ray, for as long as this takes.

    Raises:
        ConfigError: the folder is the root or another one, or lies in it; or one index of a part is asked for.
        FastfillError: see ``stages.export.export``.
    """
    if not to:
        raise ConfigError("--to is empty: a folder, or an s3:// URL, is expected")
    files, target = open_files(root, s3_endpoint=s3_endpoint), open_files(to, s3_endpoint=s3_endpoint)
    if f"{place_of(target.root)}/".startswith(f"{place_of(files.root).rstrip('/')}/"):
        raise ConfigError(f"--to {to}: lies in the output root {files.root}. Give a folder of its own.")
    if target.stat(record_path(0)) is not None:
        raise ConfigError(f"--to {to}: is an output root itself. Give a folder of its own.")
    if as_index and request.since is not None:
        raise ConfigError("--format faiss: one index holds a whole version. Leave --since out.")
    if engine is None:
        from fastfill_ray.engine.ray_engine import RayEngine

        engine = RayEngine()
    progress = Progress(stream or sys.stderr)
    with engine.session(progress.say):
        manifest = export(engine, files, target, request, progress)
    if as_index:
        write_index(target, manifest)
    return manifest


def export_text(manifest: Manifest, to: str) -> str:
    """What a finished export in the folder `to` holds, for people."""
    exact = "" if manifest.is_exact else " The index keeps vectors compressed: these are what it keeps."
    lines = [
        f"version {manifest.version}: {manifest.rows:,} items ({manifest.new_rows:,} new, "
        f"{manifest.stale_rows:,} stale) of {manifest.dim} dims in {len(manifest.files)} files under "
        f"{printable(to)}/data. Search them by {manifest.metric}.{exact}"
    ]
    if manifest.baking is None and manifest.new_rows and manifest.stale_rows:
        lines.append("Nothing calibrates the scores of its stale items beside those of new ones: --baked does.")
    if manifest.since is not None:
        lines.append(f"They are what changed since version {manifest.since.version}.")
        if manifest.deleted_rows:
            lines.append(f"To take out: {manifest.deleted_rows:,}, by the ids under {printable(to)}/deleted.")
    return "\n".join(lines)


def bake_queries(
    manifest: Mapping[str, Any] | str | Path, queries: ArrayLike, old_queries: ArrayLike | None = None
) -> F32:
    """Queries for a baked export: their inner product with its vectors is the score that ``open_index`` gives.

    Args:
        manifest: the ``manifest.json`` of the export, as a path or parsed.
        queries: (Q, E) of the new model. old_queries: (Q, D) of the old one; read only if stale items are fused.

    Returns:
        (Q, B) float32, B the export's dims.

    Raises:
        ConfigError: the export is not baked, or there is no such file.
        CorruptFile: not a manifest.
        UnusableQueries: not (Q, E) finite numbers, or old queries that are needed are missing or not (Q, D) ones; names
            the row. It is a ValueError, too.
    """
    fields: Any = manifest
    name = MANIFEST
    if not isinstance(manifest, Mapping):
        name = str(manifest)
        try:
            fields = json.loads(Path(manifest).read_bytes())
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}. Give the {MANIFEST} of a baked export.") from None
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{name}: not a manifest ({error})") from None
    if not isinstance(fields, Mapping) or "baking" not in fields:
        raise CorruptFile(f"{name}: not a manifest of an export")
    if (baking := fields["baking"]) is None:
        raise ConfigError(f"{name}: this export is not baked, so queries are searched as they are; metric "
                          f"{fields.get('metric')}")  # fmt: skip
    try:
        parsed = Baking.model_validate(baking)
    except ValueError as error:
        raise CorruptFile(f"{name}: not a manifest of an export: {error}") from None

    new = _vectors("queries", queries, parsed.new_dim)
    if parsed.old_dim == 0:
        return parsed.queries(new)
    if old_queries is None:
        raise UnusableQueries("old_queries are missing: stale items are fused with old vectors")
    old = _vectors("old_queries", old_queries, parsed.old_dim)
    if len(old) != len(new):
        raise UnusableQueries(f"there are {len(old):,} old_queries, and {len(new):,} queries: give one of each")
    return parsed.queries(new, old)


def _vectors(name: str, given: ArrayLike, dim: int) -> F32:
    """Queries (Q, dim) float32.

    Raises:
        UnusableQueries: they are none.
    """
    array = query_matrix(name, given, dim)
    if array.shape[1] != dim:
        raise UnusableQueries(
            f"{name}: expected numbers of shape (Q, {dim}); found {array.dtype} of shape {array.shape}"
        )
    return finite_queries(name, array)
