"""The commit protocol as a model: every interleaving of drivers and of commands that delete ids, on one log.

An actor's step is one access to the store. A write of the log has four outcomes: it lands, its number is taken, it
lands and the actor never learns it, or it stays on its way and lands later, if ever. An actor may die between any two
steps; it then starts anew. Faults of each kind draw on one budget.

``SAFEGUARDS`` names what the protocol relies on. ``explore`` without one of them shows what it is for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.envelope import Record
from fastfill_ray.log.records import Body, Claim, Delete, Publish, Undelete
from fastfill_ray.log.state import State, apply
from tests.log.test_records import FILE, INIT, plan, version

SAFEGUARDS = (
    "a number is created, never overwritten",
    "a lost answer is resolved by reading back",
    "an error is never taken for success",
    "a deletion is sealed anew for each number",
    "a deletion takes over the salt of the first",
    "a deletion's file is durable before its record",
    "a deletion needs an INIT",
    "a deletion claims nothing",
    "a deletion does not fence a driver",
    "a driver checks its epoch when it has read on",
    "a claim is of the next epoch of what is read",
)
DELETIONS = ("DELETE", "UNDELETE")
WORK = ("PLAN", "VERSION", "PUBLISH")


class Entry(NamedTuple):
    """A record. by: (actor, its start)."""

    kind: str
    epoch: int
    by: tuple[int, int]
    salt: int = -1


Log = tuple[Entry, ...]


class Actor(NamedTuple):
    """A driver or a deleter.

    seen: records that it has folded. known: of these, the drivers' when it last looked. epoch: what it appends under.
    salt: of a deleter's file.
    """

    at: str = "start"
    start: int = 0
    seen: int = 0
    known: int = 0
    epoch: int = -1
    salt: int = -1


class World(NamedTuple):
    """late: writes on their way. files: (actor, salt) of the deletions' files. done: deletions that were reported."""

    log: Log
    actors: tuple[Actor, ...]
    late: frozenset[tuple[int, Entry]]
    files: frozenset[tuple[int, int]]
    done: frozenset[tuple[int, int]]
    faults: int


class Violation(Exception):
    """What the protocol promises does not hold."""


@dataclass(frozen=True)
class Bounds:
    """roles: per actor "start" (a driver that gives way to one that came between), "take over" (one that does not), or
    a kind of deletion. begun: the log holds INIT already.
    """

    roles: tuple[str, ...]
    faults: int
    begun: bool = False


@dataclass(frozen=True)
class Explored:
    """How many worlds there are, or the first violation by the fewest steps."""

    worlds: int
    steps: int
    logs: int
    violation: str | None = None


def explore(bounds: Bounds, without: str | None = None) -> Explored:
    """Every world that can be reached, breadth first, until one breaks a promise."""
    model = _Model(bounds, without)
    first = model.first()
    seen, queue, steps = {first}, deque([(first, 0)]), 0
    while queue:
        world, steps = queue.popleft()
        try:
            following = list(model.steps(world))
        except Violation as violation:
            return Explored(len(seen), steps + 1, model.logs, str(violation))
        for after in following:
            if after not in seen:
                seen.add(after)
                queue.append((after, steps + 1))
    return Explored(len(seen), steps, model.logs)


@cache
def _head(log: Log) -> int:
    return max((entry.epoch for entry in log if entry.kind == "CLAIM"), default=0)


@cache
def _drivers(log: Log) -> int:
    return sum(entry.kind not in DELETIONS for entry in log)


@cache
def _salt(log: Log) -> int:
    return next((entry.salt for entry in log if entry.kind in DELETIONS), -1)


class _Model:
    def __init__(self, bounds: Bounds, without: str | None) -> None:
        assert without is None or without in SAFEGUARDS
        self.bounds, self.without, self.logs = bounds, without, 0
        self.check_log = cache(self._check_log)

    def first(self) -> World:
        log = (Entry("INIT", 0, (-1, 0)),) if self.bounds.begun else ()
        return World(
            log, (Actor(),) * len(self.bounds.roles), frozenset(), frozenset(), frozenset(), self.bounds.faults
        )

    def keeps(self, safeguard: str) -> bool:
        assert safeguard in SAFEGUARDS, safeguard
        return safeguard != self.without

    def steps(self, world: World) -> Iterator[World]:
        """All worlds after one step."""
        for number, actor in enumerate(world.actors):
            if actor.at in ("done", "fenced", "refused"):
                continue
            act = self._drive if self.bounds.roles[number] in ("start", "take over") else self._delete
            yield from (self._checked(world, after) for after in act(world, number, actor))
            if world.faults and actor.at != "start":
                yield self._died(world, number)
        for number, entry in world.late:
            landed = self._land(world._replace(late=world.late - {(number, entry)}), number, entry)
            if landed is not None:
                yield self._checked(world, landed)

    # What an actor does

    def _drive(self, world: World, number: int, actor: Actor) -> Iterator[World]:
        """One step of ``initialise``, ``claim`` and ``append`` of ``storage.commit_log``, one after the other."""
        log, by = world.log, (number, actor.start)
        if actor.at == "start":
            at = "claim" if log else "put INIT"
            if any(entry.kind == WORK[-1] for entry in log):
                at = "done"
            yield _with(world, number, actor._replace(at=at, seen=len(log), known=_drivers(log)))
        elif actor.at == "put INIT":
            yield from self._put(world, number, Entry("INIT", 0, by))
        elif actor.at == "claim":
            yield _with(world, number, self._read_for_claim(log, number, actor))
        elif actor.at == "put CLAIM":
            yield from self._put(world, number, Entry("CLAIM", actor.epoch, by))
        else:
            left = [kind for kind in WORK if all(entry.kind != kind for entry in log[: actor.seen])]
            if left:
                yield from self._put(world, number, Entry(left[0], actor.epoch, by))
            else:
                yield _with(world, number, Actor(at="done", start=actor.start))

    def _read_for_claim(self, log: Log, number: int, actor: Actor) -> Actor:
        """What a driver does next that has read the log to its end, to claim an epoch."""
        appended = _drivers(log) != actor.known
        if not self.keeps("a deletion does not fence a driver"):
            appended = len(log) != actor.seen
        if appended and self.bounds.roles[number] == "start":
            return self._fenced(log, number, actor)
        epoch = _head(log) + 1
        if actor.epoch > 0 and not self.keeps("a claim is of the next epoch of what is read"):
            epoch = actor.epoch
        return actor._replace(at="put CLAIM", seen=len(log), epoch=epoch)

    def _drove(self, actor: Actor) -> Actor:
        """What a driver does next whose record is in the log."""
        at = "claim" if actor.at == "put INIT" else "append"
        # Only a claim compares what it knew; forgotten afterwards, so that equal worlds are equal.
        return actor._replace(at=at, seen=actor.seen + 1, known=1 if at == "claim" else 0)

    def _overtaken(self, log: Log, number: int, actor: Actor) -> Actor:
        """What a driver does next whose number was taken, and that has read on."""
        if actor.at == "put INIT":
            others = _drivers(log)
            return (
                self._fenced(log, number, actor) if others > 1 else actor._replace(at="claim", seen=len(log), known=1)
            )
        if actor.at == "put CLAIM":
            return self._read_for_claim(log, number, actor)
        if not self.keeps("a deletion does not fence a driver"):
            return self._fenced(log, number, actor)
        if _head(log) != actor.epoch and self.keeps("a driver checks its epoch when it has read on"):
            return self._fenced(log, number, actor)
        if _drivers(log) != _drivers(log[: actor.seen]) and _head(log) == actor.epoch:
            raise Violation("a driver does not know its own record")
        return actor._replace(seen=len(log))

    def _fenced(self, log: Log, number: int, actor: Actor) -> Actor:
        by_drivers = [
            entry for entry in log[actor.seen :] if entry.by[0] < 0 or self.bounds.roles[entry.by[0]] not in DELETIONS
        ]
        if not by_drivers:
            raise Violation("a driver is fenced by a deletion alone")
        return Actor(at="fenced", start=actor.start)

    def _delete(self, world: World, number: int, actor: Actor) -> Iterator[World]:
        """One step of ``append_deletion`` of ``storage.commit_log``."""
        by = (number, actor.start)
        if actor.at == "start":
            yield self._prepared(world, number, actor)
        elif actor.at == "put CLAIM":
            yield from self._put(world, number, Entry("CLAIM", actor.epoch + 1, by))
        else:
            yield from self._put(world, number, Entry(self.bounds.roles[number], actor.epoch, by, actor.salt))

    def _prepared(self, world: World, number: int, actor: Actor) -> World:
        """The log read to its end, and the file written. Nobody sees the file, so the two are one step."""
        log, in_force = world.log, _salt(world.log)
        if not log and self.keeps("a deletion needs an INIT"):
            return _with(world, number, Actor(at="refused", start=actor.start))
        if in_force < 0 and self.bounds.roles[number] == "UNDELETE":
            return _with(world, number, Actor(at="refused", start=actor.start))
        salt, epoch = in_force if in_force >= 0 else number, _head(log)
        if actor.salt >= 0 and not self.keeps("a deletion takes over the salt of the first"):
            salt = actor.salt
        if actor.epoch >= 0 and not self.keeps("a deletion is sealed anew for each number"):
            epoch = actor.epoch
        claimed = any(entry.kind == "CLAIM" and entry.by == (number, actor.start) for entry in log)
        at = "put" if claimed or self.keeps("a deletion claims nothing") else "put CLAIM"
        if self.keeps("a deletion's file is durable before its record"):
            world = world._replace(files=world.files | {(number, salt)})
        return _with(world, number, actor._replace(at=at, seen=len(log), epoch=epoch, salt=salt))

    # What becomes of a write

    def _put(self, world: World, number: int, entry: Entry) -> Iterator[World]:
        """The outcomes of a write. Who finds its number taken reads on in the same step: it could as well have tried
        only now.
        """
        actor = world.actors[number]
        landed = self._land(world, actor.seen, entry)
        if landed is None:
            yield self._taken(world, number)
        else:
            yield self._told(landed, number, entry)
        if not world.faults:
            return
        if landed is not None:
            yield self._died(landed, number)
            if not self.keeps("a lost answer is resolved by reading back"):
                yield self._taken(landed, number)._replace(faults=world.faults - 1)
        yield self._died(world._replace(late=world.late | {(actor.seen, entry)}), number)
        if not self.keeps("an error is never taken for success") and entry.kind in DELETIONS:
            yield self._told(world, number, entry)._replace(faults=world.faults - 1)

    def _told(self, world: World, number: int, entry: Entry) -> World:
        """The writer knows that its record is in the log."""
        actor = world.actors[number]
        if self.bounds.roles[number] not in DELETIONS:
            return _with(world, number, self._drove(actor))
        if entry.kind == "CLAIM":
            return self._prepared(world, number, actor)
        done = world.done | {entry.by}
        return _with(world, number, Actor(at="done", start=actor.start))._replace(done=done)

    def _taken(self, world: World, number: int) -> World:
        actor = world.actors[number]
        if self.bounds.roles[number] in DELETIONS:
            return self._prepared(world, number, actor)
        return _with(world, number, self._overtaken(world.log, number, actor))

    def _land(self, world: World, number: int, entry: Entry) -> World | None:
        """The world with record `number`, None where the number is taken."""
        log = world.log
        if number < len(log) and self.keeps("a number is created, never overwritten"):
            return None
        return world._replace(log=(*log[:number], entry, *log[number + 1 :]))

    def _died(self, world: World, number: int) -> World:
        again = Actor(start=world.actors[number].start + 1)
        return _with(world, number, again)._replace(faults=world.faults - 1)

    # What is promised

    def _checked(self, before: World, after: World) -> World:
        if after.log[: len(before.log)] != before.log:
            raise Violation("a record is overwritten")
        for entry in after.log[len(before.log) :]:
            if entry.kind in DELETIONS and (entry.by[0], entry.salt) not in after.files:
                raise Violation("a record names a file that is not there")
        if not after.done <= {entry.by for entry in after.log if entry.kind in DELETIONS}:
            raise Violation("a deletion that was reported is not in the log")
        self.check_log(after.log)
        # What can land no more is gone.
        late = frozenset(put for put in after.late if put[0] >= len(after.log) or self.without == SAFEGUARDS[0])
        return after._replace(late=late)

    def _check_log(self, log: Log) -> State:
        """The log's state by the real fold."""
        if not log:
            return State()
        self.logs += 1
        *before, entry = log
        state = self.check_log(tuple(before))
        owners = {other.epoch: other.by for other in before if other.kind == "CLAIM"}
        if entry.kind in WORK and owners.get(_head(tuple(before))) != entry.by:
            raise Violation("a driver appends although another has claimed")
        if entry.kind in DELETIONS and any(o.kind in DELETIONS and o.by == entry.by for o in before):
            raise Violation("one deletion is in the log twice")
        record = Record.model_construct(
            seq=len(before), prev_sha256="", txn="", epoch=entry.epoch, created="", body=_body(entry), sha256=""
        )
        try:
            return apply(state, record)
        except CorruptFile as error:
            raise Violation(f"the fold refuses the log: {error}") from error


@cache
def _body(entry: Entry) -> Body:
    if entry.kind in DELETIONS:
        return (Delete if entry.kind == "DELETE" else Undelete)(ids=FILE, rows=1, salt=f"{entry.salt:032x}")
    if entry.kind == "CLAIM":
        return Claim(claimed=entry.epoch)
    bodies: dict[str, Body] = {
        "INIT": INIT,
        "PLAN": plan("p1"),
        "VERSION": version(0, "p1", 0),
        "PUBLISH": Publish(version=0),
    }
    return bodies[entry.kind]


def _with(world: World, number: int, actor: Actor) -> World:
    return world._replace(actors=(*world.actors[:number], actor, *world.actors[number + 1 :]))
