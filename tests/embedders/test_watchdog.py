"""A process in which an embedder does not answer is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastfill_ray.embedders.watchdog import Watched, ends_process_after
from tests.deadly import Deadly

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("deed", ["sleep", "backtrack"])
def test_a_call_that_does_not_answer_ends_the_process_and_shows_where(deed: str) -> None:
    code = (
        "from tests.deadly import Deadly; from fastfill_ray.embedders.watchdog import Watched\n"
        f"Watched(Deadly(), 1.0)({{'x': [{deed!r}]}}, 'item')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "deadly.py" in ended.stderr


def test_what_answers_in_time_is_left_alone() -> None:
    for _ in range(3):
        assert Watched(Deadly(), 60)({"x": ["4"]}, "item")[0, 0] == 5
    with ends_process_after(None), pytest.raises(ValueError, match="cannot be read"):
        Watched(Deadly(), 60)({"x": ["raise"]}, "item")
