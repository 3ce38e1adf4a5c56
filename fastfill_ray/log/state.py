"""What a log says: the fold that turns records into state, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.envelope import Record
from fastfill_ray.log.records import ROLLBACK, Claim, Delete, Expire, Init, Plan, Publish, Undelete, Version
from fastfill_ray.types import Model


class State(Model):
    """What the log says. Everything the driver decides, it decides from this."""

    next_seq: int = 0
    init: Init | None = None
    root_id: str = Field(default="", description="transaction of INIT: names the root, wherever it lies")
    epoch: int = 0
    plans: tuple[Plan, ...] = ()
    versions: tuple[Version, ...] = ()
    published: tuple[int, ...] = Field(default=(), description="version numbers in the order they were published")
    publish_reasons: tuple[str, ...] = Field(default=(), description="per entry of `published`: why; see PUBLISH")
    served_before: tuple[int | None, ...] = Field(
        default=(), description="per version: what was served when it was committed, against which the gate held it"
    )
    readers_seq: int | None = Field(
        default=None, description="number of the last record that changed what readers see; None before the first"
    )
    expired: frozenset[int] = frozenset()
    deletions: tuple[Delete | Undelete, ...] = Field(
        default=(), description="in the order of the log; which ids are deleted by them, index.deletions reads"
    )

    @property
    def salt(self) -> str | None:
        """The salt of all deletions, chosen by the first of them; None before."""
        return self.deletions[0].salt if self.deletions else None

    @property
    def driver_records(self) -> int:
        """Number of records that are no deletions. While it stays, no other driver has appended anything."""
        return self.next_seq - len(self.deletions)

    @property
    def plan(self) -> Plan | None:
        return self.plans[-1] if self.plans else None

    @property
    def plan_versions(self) -> tuple[Version, ...]:
        """Versions of the last plan, in wave order."""
        return tuple(v for v in self.versions if self.plan is not None and v.plan == self.plan.plan)

    @property
    def spent_before_s(self) -> float:
        """Work time of the versions of other plans in the order of the last one: those that it follows."""
        return sum(v.seconds for v in self.order_versions if self.plan is not None and v.plan != self.plan.plan)

    @property
    def order_plans(self) -> dict[str, Plan]:
        """{name: plan} in the last plan's order: the one that it follows, and all that follow that, as made."""
        root = None if self.plan is None else self.plan.root
        return {plan.plan: plan for plan in self.plans if plan.root == root}

    @property
    def order_versions(self) -> tuple[Version, ...]:
        """Versions of ``order_plans``, as they were made: a curve, also where the gallery changed on the way."""
        plans = self.order_plans
        return tuple(version for version in self.versions if version.plan in plans)

    @property
    def next_wave(self) -> int | None:
        """The wave that the last plan's next version stands after; None if it has all of them, or there is no plan."""
        made = len(self.plan_versions)
        return self.plan.version_waves[made] if self.plan is not None and made < len(self.plan.version_waves) else None

    @property
    def finished(self) -> bool:
        """The last plan's final version is committed."""
        versions = self.plan_versions
        return bool(versions) and versions[-1].final

    @property
    def stopped(self) -> str | None:
        """Why the config's `stop` ended the last plan at its newest version; None if it did not."""
        versions = self.plan_versions
        return versions[-1].stopped if versions else None

    @property
    def ended(self) -> bool:
        """The last plan is finished or was stopped."""
        return self.finished or self.stopped is not None

    @property
    def serving(self) -> int | None:
        """The version that readers open: the newest published one that is not expired."""
        return next((v for v in reversed(self.published) if v not in self.expired), None)

    @property
    def rolled_back_to(self) -> int | None:
        """The version that readers open, if a person put it there (`fastfill-ray rollback`); None if the gate did."""
        newest = next((at for at in reversed(range(len(self.published))) if self.published[at] not in self.expired), 0)
        is_by_hand = self.publish_reasons[newest : newest + 1] == (ROLLBACK,)
        return self.serving if is_by_hand else None

    def version(self, number: int) -> Version | None:
        return next((v for v in self.versions if v.version == number), None)

    def plan_of(self, version: Version) -> Plan:
        """The plan that a version of this log is of: ``fold`` has seen to it that there is one."""
        return next(plan for plan in self.plans if plan.plan == version.plan)


def fold(records: Iterable[Record]) -> State:
    """State = fold(records).

    Raises:
        CorruptFile: records that no honest driver can have written (numbers out of order, a version without its plan).
    """
    state = State()
    for record in records:
        state = apply(state, record)
    return state


def apply(state: State, record: Record) -> State:
    """One step of the fold."""
    body = record.body

    def expect(condition: bool, what: str) -> None:
        if not condition:
            raise CorruptFile(f"log record {record.seq} ({body.kind}): {what}.")

    expect(record.seq == state.next_seq, f"expected number {state.next_seq}")
    expect((state.init is None) == isinstance(body, Init), "the first record, and only it, is INIT")
    change: dict[str, Any] = {"next_seq": record.seq + 1}
    if isinstance(body, Publish | Expire | Delete | Undelete):
        change["readers_seq"] = record.seq
    if isinstance(body, Init):
        change |= {"init": body, "root_id": record.txn}
    elif isinstance(body, Claim):
        expect(body.claimed > state.epoch, f"claims epoch {body.claimed}, {state.epoch} is already claimed")
        change["epoch"] = body.claimed
    else:
        expect(record.epoch == state.epoch, f"written under epoch {record.epoch}, the claimed one is {state.epoch}")
        if isinstance(body, Plan):
            expect(all(body.plan != plan.plan for plan in state.plans), f"plan {body.plan} is in the log already")
            change["plans"] = (*state.plans, body)
        elif isinstance(body, Version):
            expect(
                state.plan is not None and body.plan == state.plan.plan,
                f"belongs to plan {body.plan}, not the last one",
            )
            expect(body.version == len(state.versions), f"expected version {len(state.versions)}")
            expect(body.wave == state.next_wave, f"is of wave {body.wave}, expected {state.next_wave}")
            change["versions"] = (*state.versions, body)
            change["served_before"] = (*state.served_before, state.serving)
        elif isinstance(body, Publish):
            expect(state.version(body.version) is not None, f"publishes version {body.version}, which does not exist")
            expect(body.version not in state.expired, f"publishes version {body.version}, which is expired")
            change["published"] = (*state.published, body.version)
            change["publish_reasons"] = (*state.publish_reasons, body.reason)
        elif isinstance(body, Expire):
            change["expired"] = state.expired | set(body.versions)
        else:
            expect(state.salt in (None, body.salt), f"has another salt than the root's deletions before, {state.salt}")
            expect(bool(state.deletions) or isinstance(body, Delete), "undoes a deletion, but there is none before it")
            change["deletions"] = (*state.deletions, body)
    return state.model_copy(update=change)
