"""What the next start would do, held against what it then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastfill_ray.cli import main
from fastfill_ray.config import load_config
from fastfill_ray.errors import TooManyRemoved
from fastfill_ray.log.preview import FileChanges, ItemChanges, Preview, Serving, Work, serving
from fastfill_ray.report.preview import preview_lead, preview_words
from fastfill_ray.stages.preview import preview
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.heartbeat import Heartbeat
from tests.living import Living, gallery_of


def root_files(living: Living) -> dict[str, tuple[int, int]]:
    root = Path(living.root)
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*") if path.is_file()}


def look(living: Living, **sections: Any) -> Preview:
    """The preview, which leaves the root as it was and embeds nothing."""
    before, embedded = root_files(living), living.embedded()
    found = preview(open_files(living.root), load_config(living.config(**sections)), living.state(), Progress())
    assert (root_files(living), living.embedded()) == (before, embedded)
    return found


def embeds(living: Living, **options: Any) -> int:
    """Items that a start embeds."""
    before = len(living.embedded())
    living.run(**options)
    return len(living.embedded()) - before


def change(living: Living) -> None:
    """40 items come, 30 of them with an old vector; a file is sorted anew with 20 payloads changed; 15 items go."""
    living.write("part-010.parquet", {100_000 + i: living.new_item(has_old=i >= 10) for i in range(40)})
    resorted = dict(reversed(living.files["part-001.parquet"].items()))
    living.write("part-001.parquet", resorted | {key: living.new_item() for key in list(resorted)[:20]})
    living.write("part-002.parquet", dict(list(living.files["part-002.parquet"].items())[15:]))
    living.touch("part-000.parquet")


def test_an_unfinished_run_goes_on_and_then_there_is_nothing_to_do(tmp_path: Path) -> None:
    living = gallery_of(tmp_path / "place")
    living.run(until="plan")
    found = look(living)
    assert (found.action, found.work) == ("go on", Work(served=0, known=110, due=490))
    living.run(until="wave:1")
    found = look(living)
    assert (found.action, found.work) == ("go on", Work(served=240, known=0, due=360))
    assert serving(living.state()) == Serving(version=1, stale=360, absent=0)
    assert embeds(living) == 360
    assert look(living) == Preview(action="nothing")


def test_a_changed_gallery_is_counted_and_what_would_be_embedded_is_what_is_embedded_then(tmp_path: Path) -> None:
    living = gallery_of(tmp_path / "place")
    living.run(until="wave:1")
    held = living.held(living.state().versions[-1])
    new = {key for key, item in held.items() if item.state == "new"}
    changed = new & set(list(reversed(living.files["part-001.parquet"]))[:20])
    change(living)
    found = look(living)
    assert (found.action, found.error, found.items) == ("follow", None, 625)
    assert found.files == FileChanges(added=1, changed=3, gone=0, same=0)
    assert found.changes == ItemChanges(added=40, changed=len(changed), removed=15)
    assert found.work is not None
    assert found.work.served + found.work.known + found.work.due == 625

    anew = look(living, policy={"name": "random"})
    assert (anew.action, anew.changes, anew.work) == ("order anew", found.changes, found.work)
    assert anew.reason == "policy.name was 'uncertainty', is 'random'"
    other_index = look(living, index={"factory": "SQ8"})
    assert other_index.changes == ItemChanges(added=40, changed=None, removed=15)
    assert other_index.work == Work(served=0, known=found.work.served, due=found.work.due)

    assert embeds(living) == found.work.due
    living.check_all_new(living.state().versions[-1])


def test_what_would_be_refused_is_said_with_the_words_and_the_exit_code_of_the_start(tmp_path: Path) -> None:
    living = gallery_of(tmp_path / "place")
    living.run()
    living.write("part-002.parquet", dict(list(living.files["part-002.parquet"].items())[100:]))
    found = look(living)
    with pytest.raises(TooManyRemoved) as refused:
        living.run()
    assert (found.error, found.exit_code) == (f"TooManyRemoved: {refused.value}", 2)
    assert (found.action, found.changes) == ("follow", ItemChanges(added=0, changed=0, removed=100))
    assert living.run(allow_removals=True).state.versions[-1].rows == 500

    (living.folder / "gallery" / "part-003.parquet").write_bytes(b"PAR1, and no more")
    found = look(living)
    assert (found.action, found.exit_code) == (None, 1)
    assert "part-003.parquet: not a readable Parquet file" in (found.error or "")
    found = look(living, gallery={**living.config()["gallery"], "old_vector_column": None}, policy={"name": "random"})
    assert (found.action, found.exit_code) == (None, 2)


def test_status_with_a_config_tells_people_and_machines_and_that_a_driver_is_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    living = gallery_of(tmp_path / "place")
    living.run(until="version0")
    config = living.folder / "backfill.yaml"
    config.write_text(yaml.safe_dump(living.config()))
    command = ["status", living.root, "--config", str(config)]
    assert main(command) == 0
    assert "Next start: goes on with the plan that there is." in capsys.readouterr().out
    with Heartbeat(open_files(living.root)):
        assert main([*command, "--set", "policy.name=random", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["next"]["action"] == "order anew"
    assert found["next"]["drivers"] == found["drivers"] != []
    assert found["now"] == {"version": 0, "stale": 490, "absent": 0}
    assert main([*command, "--set", f"output={tmp_path / 'other'}"]) == 2
    assert f"output is {tmp_path / 'other'}, not {living.root}" in capsys.readouterr().err


def test_a_version_that_waits_to_be_published_is_said_and_counts_as_served(tmp_path: Path) -> None:
    living = gallery_of(tmp_path / "place")
    living.run(until="wave:1")
    state = living.state()
    waiting = state.model_copy(update={"published": (0,)})
    found = preview(open_files(living.root), load_config(living.config()), waiting, Progress())
    assert (found.publishes, found.action) == (1, "go on")


def test_the_words_say_each_thing_in_a_line_of_its_own() -> None:
    found = Preview(
        action="follow",
        error="TooManyRemoved: 100 of the 625 items are gone.",
        exit_code=2,
        files=FileChanges(added=1, changed=2, gone=3, same=4),
        changes=ItemChanges(added=5, changed=6, removed=7),
        items=1000,
        work=Work(served=900, known=60, due=40),
        drivers=("process 1",),
    )
    now = Serving(version=3, stale=8, absent=9)
    assert preview_words(found, now).splitlines() == [
        "At work: process 1. A start now would end with exit code 75.",
        "Next start: ends with exit code 2. TooManyRemoved: 100 of the 625 items are gone.",
        "Once that is settled: follows the gallery: pairs, map and order stay, nothing is trained or chosen.",
        "Files: 1 added, 2 changed, 3 gone, 4 as before.",
        "Items: 5 added, 6 changed, 7 removed; 1,000 then.",
        "New vectors: 900 items are served with theirs, 60 are embedded and not served yet, 40 are to be embedded "
        "at most.",
        "Served now: version 3; items still stale: 8; absent: 9.",
    ]
    assert preview_lead(found).startswith("Settle first what the next start would be refused for: TooManyRemoved: ")
    follows = found.model_copy(update={"error": None})
    assert preview_lead(follows) == "Start the run again: the gallery has changed, 18 items differ."
    nothing = Preview(action="nothing", publishes=2)
    assert preview_lead(nothing) == ""
    assert preview_words(nothing, Serving(version=None, stale=None, absent=None)).splitlines() == [
        "Next start: publishes version 2 first.",
        "Next start: nothing, all is done.",
        "Served now: nothing.",
    ]
