"""Scoring a group of chunks: a worker that dies over it costs the chunks that have no receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.stages import score
from fastfill_ray.storage.receipts import Receipt
from tests import synthetic


class DyingEngine(InProcessEngine):
    """Every worker dies after the first unit of a group, and another one begins the group anew."""

    def run_units(
        self, function: Callable[[Sequence[Any]], Iterator[Receipt]], groups: Sequence[Sequence[Any]]
    ) -> Iterator[Receipt]:
        for group in groups:
            next(function(group))
            yield from function(group)


def test_what_was_scored_before_a_worker_died_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    scored: list[str] = []
    score_chunk = score._score_chunk

    def spy(scorer: Any, work: Any, table: Any) -> Any:
        scored.append(work.unit)
        return score_chunk(scorer, work, table)

    monkeypatch.setattr(score, "_score_chunk", spy)
    result = _run(load_config(synthetic.config(tmp_path)), DyingEngine(), until="version0")
    assert result.state.versions[0].rows == 600
    assert len(scored) == len(set(scored)) > 12
