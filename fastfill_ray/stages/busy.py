"""How busy the embedders of a pool were, and what an item cost, from what their receipts say."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from fastfill_ray.storage.receipts import Receipt

_HOUR_S, _MILLION = 3600, 1_000_000
_THIS_PROCESS = uuid4().hex[:12]


@dataclass(frozen=True)
class Embedding:
    """When a unit was embedded, as its receipt's details have it.

    actor: names the process. began_s, ended_s: of the block that it was part of, Unix time. busy_s: the unit's part.
    tokens: of the block's, the unit's part; None where the embedder does not count them.
    """

    actor: str
    began_s: float
    ended_s: float
    busy_s: float
    tokens: float | None = None

    @classmethod
    def here(cls, began_s: float, ended_s: float, share: float, tokens: int | None = None) -> Embedding:
        """In this process. share: of the block's rows that are the unit's. tokens: of the block."""
        busy_s = share * max(0.0, ended_s - began_s)
        return cls(_THIS_PROCESS, began_s, ended_s, busy_s, None if tokens is None else share * tokens)

    def details(self) -> dict[str, Any]:
        """As a receipt has it."""
        return {"embedding": asdict(self)}


class Busy:
    """Of the units that came in one run of a pool. price: of an hour of one actor; None where none is given."""

    def __init__(self, price: float | None = None) -> None:
        self._price = price
        self._began_s: dict[str, float] = {}
        self._ended_s: dict[str, float] = {}
        self._busy_s: defaultdict[str, float] = defaultdict(float)
        self._rows = 0
        self._tokens: float | None = 0.0  # None once a unit came that does not say it

    def add(self, receipt: Receipt) -> None:
        """Receipts that say nothing of it, those of earlier releases, do not count."""
        details: dict[str, Any] | None = receipt.details.get("embedding")
        if details is None:
            return
        each = Embedding(**details)
        self._began_s[each.actor] = min(each.began_s, self._began_s.get(each.actor, each.began_s))
        self._ended_s[each.actor] = max(each.ended_s, self._ended_s.get(each.actor, each.ended_s))
        self._busy_s[each.actor] += each.busy_s
        self._rows += receipt.rows + len(receipt.quarantined)
        self._tokens = None if self._tokens is None or each.tokens is None else self._tokens + each.tokens

    @property
    def share(self) -> float | None:
        """Of the time from an embedder's first batch to its last one, over all embedders. None where nothing came."""
        held_s = self._held_s
        return min(1.0, sum(self._busy_s.values()) / held_s) if held_s else None

    @property
    def _held_s(self) -> float:
        return sum(self._ended_s[actor] - began_s for actor, began_s in self._began_s.items())

    def __str__(self) -> str:
        """For people; "" where nothing came."""
        if self.share is None:
            return ""
        span_s = max(self._ended_s.values()) - min(self._began_s.values())
        hours = self._held_s / self._rows * _MILLION / _HOUR_S
        actors = len(self._began_s)
        tokens = "" if self._tokens is None else f"{self._tokens / span_s:,.0f} tokens/s, "
        cost = "" if self._price is None else f": {hours * self._price:,.2f} at {self._price:g} an hour"
        return (
            f"{self._rows:,} items by {actors} embedder{'s' * (actors != 1)}, {self.share:.1%} busy between first and "
            f"last batch: {self._rows / span_s:,.1f} items/s, {tokens}{hours:,.2f} actor hours for a million "
            f"items{cost}"
        )
