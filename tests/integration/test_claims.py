"""A start claims an epoch when it has something to append, once, and otherwise leaves the log as it is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastfill_ray.cli import main
from fastfill_ray.errors import EmbedderError, Fenced
from fastfill_ray.stages.waves import Waves
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.receipts import Receipt
from tests.integration.conftest import OTHERS, Workshop, in_process
from tests.synthetic import marker

pytestmark = pytest.mark.parametrize("run", ["in_process"], indirect=True)  # what is planned, is planned on it
Root = Callable[[], Path]


def records(root: Path) -> list[str]:
    """What is in the log, as the kinds of its records."""
    return [json.loads(path.read_text())["body"]["kind"].lower() for path in sorted((root / "log").iterdir())]


def test_each_start_that_appends_claims_once_and_no_other_start_does(root: Root, workshop: Workshop) -> None:
    target = root()
    config = workshop.config(target)
    planned = ["init", "claim", "plan"]
    assert records(target) == planned
    in_process(config, until="plan")
    assert records(target) == planned, "everything asked for was done"

    workshop.control(bad={marker(value): "raise" for value in workshop.x[OTHERS, 0].tolist()})
    in_process(config, until="version0")
    begun = [*planned, "claim", "version", "publish"]
    assert records(target) == begun
    with pytest.raises(EmbedderError):
        in_process(config)
    assert records(target) == begun, "it embedded, and had nothing to append"

    workshop.control()
    assert in_process(config).finished
    done = [*begun, "claim", *["version", "publish"] * 3]
    assert records(target) == done
    in_process(config)
    assert records(target) == done


def test_a_start_that_publishes_what_was_left_and_goes_on_claims_once(root: Root, workshop: Workshop) -> None:
    target = root()
    in_process(workshop.config(target), until="version0")
    (target / "log" / f"{5:020d}.json").unlink()  # killed between the two records
    assert records(target) == ["init", "claim", "plan", "claim", "version"]
    in_process(workshop.config(target), until="wave:1")
    assert records(target)[5:] == ["claim", "publish", "version", "publish"]


def test_a_driver_whose_place_was_taken_before_it_claimed_does_not_fence_the_other(
    root: Root, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = root()
    config = workshop.config(target)
    in_process(config, until="version0")
    receipts, rivals = Waves.receipts, [1]

    def overtaken(waves: Waves, wave: int) -> dict[str, Receipt]:
        embedded = receipts(waves, wave)
        if rivals:
            in_process(config, until=f"wave:{rivals.pop()}", take_over=True)
        return embedded

    monkeypatch.setattr(Waves, "receipts", overtaken)
    with pytest.raises(Fenced, match="has appended to the log since this one read it"):
        in_process(config)
    assert records(target)[6:] == ["claim", "version", "publish"]
    assert in_process(config).finished
    assert records(target)[9:] == ["claim", *["version", "publish"] * 2]
    assert [v.new_rows for v in read_state(open_files(str(target))).versions] == [120, 180, 360, 600]


def test_ids_that_are_deleted_while_a_run_goes_on_do_not_stop_it(
    root: Root, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = root()
    config = workshop.config(target)
    in_process(config, until="version0")
    before = len(records(target))
    ids = tmp_path / "ids"
    ids.write_text("1\n")
    receipts = Waves.receipts

    def deleting(waves: Waves, wave: int) -> dict[str, Receipt]:
        assert main(["delete", str(target), "--ids", str(ids)]) == 0
        return receipts(waves, wave)

    monkeypatch.setattr(Waves, "receipts", deleting)
    assert in_process(config).finished
    added = records(target)[before:]
    assert added[0] == "delete", "before the claim"
    assert "delete" in added[added.index("claim") :], "and under it"
    assert [kind for kind in added if kind != "delete"] == ["claim", *["version", "publish"] * 3]


def test_a_start_removes_what_killed_ones_left_a_day_ago(root: Root, workshop: Workshop) -> None:
    target = root()
    folder = next((target / "pairs").iterdir())
    old, young = folder / f".tmp-{'0' * 32}", folder / f".tmp-{'1' * 32}"
    for path in (old, young):
        path.write_bytes(b"torn")
    probe = target / "probe" / f"{int(time.time()) - 90_000}-{'2' * 32}"
    probe.parent.mkdir(exist_ok=True)
    probe.write_bytes(b"first")
    os.utime(old, (time.time() - 90_000,) * 2)
    in_process(workshop.config(target), until="version0")
    assert (old.exists(), young.exists(), probe.exists()) == (False, True, False)
