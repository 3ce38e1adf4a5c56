"""What every stage works with."""

from __future__ import annotations

from dataclasses import dataclass

from fastfill_ray.engine.interface import Engine
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import Files


@dataclass(frozen=True)
class Context:
    """engine: where work is done. files: the output root. store: the user's own files. progress: where a stage says
    what it does.
    """

    engine: Engine
    files: Files
    store: InputStore
    progress: Progress
