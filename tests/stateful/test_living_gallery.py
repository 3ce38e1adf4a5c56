"""A gallery changes, starts are killed, versions are rolled back: whatever the order, it is as its plain model says."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.living import Begun, Item, Living, small_gallery, without

# So that the pairs are less than the first wave.
MIN_ITEMS = 180
MAX_WITHOUT_OLD = 12
SECTIONS: dict[str, dict[str, Any]] = {
    "as given": {},
    "other policy": {"policy": {"name": "random"}},
    "other waves": {"waves": [0.5, 1.0]},
}


@cache
def begun(until: str, last_wave: float) -> Begun:
    """A gallery after its first start; all examples begin with one of these."""
    folder = Path(tempfile.mkdtemp(prefix="living-"))

    def begin(living: Living) -> None:
        if until != "nothing":
            living.run(until=until)

    return Begun.of(folder, partial(small_gallery, waves=[0.45, 0.7, last_wave]), begin)


COUNT = st.integers(1, 12)
WHERE = st.integers(0, 10**6)


class LivingGallery(RuleBasedStateMachine):
    """The items are in ``Living.files``; ``Living.check`` lays a version beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.living: Living
        self.names = self.ids = 0
        self.is_done = False  # nothing has changed since a run that ended

    @initialize(until=st.sampled_from(["nothing", "plan", "version0", "wave:2"]), last_wave=st.sampled_from([1.0, 0.8]))
    def begin(self, until: str, last_wave: float) -> None:
        self.living = begun(until, last_wave).get()
        self.given = self.living.sections
        self.names, self.ids = 100, 1_000_000

    # What happens to the gallery

    def _name(self, where: int) -> str:
        return sorted(self.living.files)[where % len(self.living.files)]

    def _new_name(self) -> str:
        self.names += 1
        return f"part-{self.names}.parquet"

    def _new_items(self, count: int, *, has_old: bool = True) -> dict[int, Item]:
        self.ids += count
        return self.living.new_items(self.ids - count, count, has_old=has_old)

    def _some(self, items: Mapping[int, object], where: int, count: int) -> list[int]:
        """Neighbours in a file, from a place on."""
        keys = list(items)
        return (keys * 2)[where % len(keys) :][: min(count, len(keys))]

    def _write(self, name: str, items: dict[int, Item]) -> None:
        self.living.write(name, items)
        self.is_done = False

    def _has_too_few(self, removed: int) -> bool:
        return len(self.living.items) - removed < MIN_ITEMS

    @rule(count=COUNT, old=st.booleans())
    def add_file(self, count: int, old: bool) -> None:
        old = old or sum(not item.has_old for item in self.living.items.values()) + count > MAX_WITHOUT_OLD
        self._write(self._new_name(), self._new_items(count, has_old=old))

    @rule(where=WHERE, count=COUNT)
    def add_to_file(self, where: int, count: int) -> None:
        name = self._name(where)
        self._write(name, {**self._new_items(count), **self.living.files[name]})

    @rule(where=WHERE, count=COUNT, what=st.sampled_from(["payload", "old vector", "label"]))
    def change(self, where: int, count: int, what: str) -> None:
        name = self._name(where)
        items = dict(self.living.files[name])
        for key in self._some(items, where, count):
            items[key] = self.living.changed(items[key], what)
        self._write(name, items)

    @rule(where=WHERE, count=COUNT)
    def remove(self, where: int, count: int) -> None:
        name = self._name(where)
        if not self._has_too_few(count):
            items = self.living.files[name]
            self._write(name, without(items, self._some(items, where, count)))

    @rule(where=WHERE)
    def drop_file(self, where: int) -> None:
        name = self._name(where)
        if not self._has_too_few(len(self.living.files[name])):
            self._write(name, {})

    @rule(where=WHERE, count=COUNT)
    def bring_back(self, where: int, count: int) -> None:
        """What was removed comes back with the payload that it had."""
        gone = without(self.living.gone, self.living.items)
        if gone:
            self._write(self._new_name(), {key: gone[key] for key in self._some(gone, where, count)})

    @rule(where=WHERE, to=WHERE, count=COUNT)
    def move(self, where: int, to: int, count: int) -> None:
        name, other = self._name(where), self._name(to)
        if name != other:
            keys = self._some(self.living.files[name], where, count)
            moved = {key: self.living.files[name][key] for key in keys}
            self._write(other, {**self.living.files[other], **moved})
            self._write(name, without(self.living.files[name], keys))

    @rule(where=WHERE)
    def sort_anew(self, where: int) -> None:
        name = self._name(where)
        self._write(name, dict(reversed(self.living.files[name].items())))

    @rule(where=WHERE)
    def touch(self, where: int) -> None:
        self.living.touch(self._name(where))
        self.is_done = False

    @rule(where=WHERE)
    def rename(self, where: int) -> None:
        self.living.rename(self._name(where), self._new_name())
        self.is_done = False

    @rule(which=st.sampled_from(sorted(SECTIONS)))
    def configure(self, which: str) -> None:
        self.living.sections = {**self.given, **SECTIONS[which]}
        self.is_done = False

    @rule(where=WHERE, count=COUNT)
    def delete(self, where: int, count: int) -> None:
        if self._is_bound():
            self.living.delete(self._some(self.living.files[self._name(where)], where, count))

    @rule(where=WHERE, count=COUNT)
    def undelete(self, where: int, count: int) -> None:
        if self.living.deleted:
            self.living.undelete(self._some(dict.fromkeys(sorted(self.living.deleted)), where, count))

    def _is_bound(self) -> bool:
        """Whether there is a log, so that something can be deleted."""
        return Path(self.living.root).exists() and self.living.state().init is not None

    # What runs over it

    def _versions(self) -> int:
        return len(self.living.state().versions) if Path(self.living.root).exists() else 0

    @rule(
        at=st.integers(0, 8).map(lambda units: {"units": units}) | st.integers(0, 70).map(lambda puts: {"puts": puts})
    )
    def kill(self, at: dict[str, int]) -> None:
        since = self._versions()
        self.is_done = not self.living.run_killed(**at)
        if self._versions():
            self.living.check_versions(since)

    @rule(until=st.sampled_from(["plan", "version0", "wave:1", "wave:2"]))
    def run(self, until: str) -> None:
        since = self._versions()
        self.living.run(until=until)
        if self._versions():
            self.living.check_versions(since)
            self.living.verify()

    @rule()
    def run_to_the_end(self) -> None:
        """To the last wave, which may be below 1.0."""
        if self.living.config()["waves"][-1] == 1:
            self.living.finish()
        else:
            since = self._versions()
            assert self.living.run().finished
            self.living.check_versions(since)
            self.living.verify()
        self.is_done = True

    @rule()
    def night(self) -> None:
        """A run where nothing has changed since the last one."""
        if self.is_done:
            before = self.living.written()
            self.living.run()
            assert self.living.written() == before

    @rule(where=WHERE)
    def rollback(self, where: int) -> None:
        versions = self._versions()
        if versions:
            self.living.rollback(where % versions)


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
# Without shrinking, which would take an hour: an example of 20 steps can be read.
QUICK = settings(
    max_examples=20,
    stateful_step_count=20,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=CHECKS,
)
TestLivingGallery = LivingGallery.TestCase
TestLivingGallery.settings = QUICK


@pytest.mark.slow
class TestLivingGalleryLong(LivingGallery.TestCase):
    settings = settings(QUICK, max_examples=300, stateful_step_count=40, derandomize=False)
