"""Exports, as `fastfill-ray export` and ``fastfill_ray.bake_queries`` use them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike

from fastfill_ray.config import load_config
from fastfill_ray.engine.interface import Engine
from fastfill_ray.errors import ConfigError, CorruptFile, FileMissing
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.retrieval.baking import Baking
from fastfill_ray.sanitize import printable
from fastfill_ray.stages.export import export, write_index
from fastfill_ray.stages.export_columns import GalleryColumns
from fastfill_ray.stages.export_manifest import MANIFEST, ExportRequest, Manifest, read_manifest
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import open_files
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
        ConfigError: the folder is the root, or lies in it; or one index of a part is asked for.
        FastfillError: see ``stages.export.export``.
    """
    files, target = open_files(root, s3_endpoint=s3_endpoint), open_files(to, s3_endpoint=s3_endpoint)
    if f"{target.root}/".startswith(f"{files.root.rstrip('/')}/"):
        raise ConfigError(f"--to {to}: lies in the output root {files.root}. Give a folder of its own.")
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
    if manifest.since is not None:
        lines.append(
            f"They are what changed since version {manifest.since.version}; {manifest.deleted_rows:,} ids to take out "
            f"are under {printable(to)}/deleted."
        )
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
        ConfigError: the export is not baked.
        CorruptFile: not a manifest.
        ValueError: vectors of other dims, or old queries are needed and missing.
    """
    fields: Any = manifest
    name = MANIFEST
    if not isinstance(manifest, Mapping):
        name = str(manifest)
        try:
            fields = json.loads(Path(manifest).read_bytes())
        except ValueError as error:
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

    old = None if old_queries is None else np.asarray(old_queries, np.float32)
    return parsed.queries(np.asarray(queries, np.float32), old)
