"""What asks: the users' held-out queries, a log of what users asked, or both; embedded beside the pairs.

Legend: Q queries of a part of the log, n events of its held-out traffic, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.config import ObjectiveConfig, QuarantineConfig, QueriesConfig, shown_paths
from fastfill_ray.errors import InputError
from fastfill_ray.experiment.candidate import Objective, stand_in
from fastfill_ray.experiment.events import draw_events
from fastfill_ray.experiment.items import MAX_QUERIES, Queries
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.inputs.query_log import HELD_OUT_SHARE, LogPart, QueryLog, pin_query_log, read_query_log
from fastfill_ray.inputs.table import Column, TableInput
from fastfill_ray.ordering.demand import LoggedQueries, TakenItems
from fastfill_ray.ordering.ids import seeded_hash
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.quarantine import UnitGroup
from fastfill_ray.stages.queries import (
    QueryPlan,
    QueryRows,
    load_queries,
    of_log,
    pin_queries,
    plan_queries,
    plan_rows,
    query_columns,
    read_queries,
    vectors_of_queries,
)
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import F32, I64, IdType, Objects, Relevance, fingerprint

# Distinct queries of each part of a log that are embedded, the most frequent first.
MAX_LOGGED = 1000
_BESIDE = "are looked at beside the pairs"


# The log that was read last, by name: preflight looks through it, and what comes after does not do so again.
_last: dict[str, QueryLog] = {}


def _log_columns(config: QueriesConfig) -> list[Column]:
    return list(query_columns(of_log(config)).values())


def pin_log(
    store: InputStore, config: QueriesConfig, path: str | Sequence[str], id_type: IdType | None = None
) -> TableInput:
    """The config's log, pinned; see ``pin_query_log``."""
    return pin_query_log(store, path, _log_columns(config), id_type)


def read_log(
    store: InputStore, config: QueriesConfig, id_type: IdType, seed: int
) -> tuple[TableInput, QueryLog] | None:
    """The log, pinned and aggregated; None where the config names none. All of it is fitted on where other queries are
    held out.

    Raises:
        ConfigError, InputError: see ``pin_query_log`` and ``read_query_log``; or a part of it has no traffic.
    """
    if config.log_path is None:
        return None
    columns, share = _log_columns(config), HELD_OUT_SHARE if config.path is None else 0.0
    pinned = pin_log(store, config, config.log_path, id_type)
    name = fingerprint([pinned.model_dump(mode="json"), config.model_dump(mode="json"), seed])
    if name not in _last:
        log = read_query_log(store, pinned, columns, limit=MAX_LOGGED, seed=seed, held_out_share=share)
        _last.clear()
        _last[name] = log
    log = _last[name]
    if not log.fit.all_traffic or (share and not log.held_out.all_traffic):
        raise InputError(
            f"queries.log_path {shown_paths(config.log_path)}: {log.fit.all_queries + log.held_out.all_queries} "
            f"distinct queries, and cut by {log.cut} one part has none. At least two queries, asked at two times, are "
            "needed; log more, or leave it out."
        )
    return pinned, log


def answered_by(objective: ObjectiveConfig, *, has_taken: bool) -> ObjectiveConfig:
    """The objective; where a log says nothing of what was taken in its held-out part, what stands in for it."""
    if objective.relevance != "log" or has_taken:
        return objective
    other = stand_in(Objective(objective.relevance, objective.metric))
    return objective.model_copy(update={"relevance": other.relevance, "metric": other.metric})


def asked_files(store: InputStore, config: QueriesConfig) -> list[PinnedFile]:
    """The files that queries are embedded from."""
    files = [] if config.path is None else list(pin_queries(store, config)[0].files)
    if config.log_path is not None:
        files += pin_log(store, config, config.log_path).files
    return files


@dataclass(frozen=True, eq=False)
class _Logged:
    """The queries of a log, each once, whichever part it is in.

    fit, held_out: (Q,) the place in the plan of each query of either part.
    """

    log: QueryLog
    plan: QueryPlan
    fit: I64
    held_out: I64
    read: QueryRows

    @classmethod
    def of(
        cls,
        name: str,
        config: QueriesConfig,
        pinned: TableInput,
        log: QueryLog,
        spaces: Mapping[str, str],
        source: Source,
    ) -> _Logged:
        """Each row group that holds some of the queries is read once."""
        fit, held_out = log.fit, log.held_out
        number_of = {query: number for number, query in enumerate(fit.hashes.tolist())}
        only_later = np.flatnonzero([query not in number_of for query in held_out.hashes.tolist()])
        number_of |= {int(held_out.hashes[row]): len(number_of) + n for n, row in enumerate(only_later.tolist())}
        places = np.concatenate([fit.places, held_out.places[only_later]])
        order = np.lexsort((places[:, 1], places[:, 0]))
        chosen = []
        for number, file in enumerate(pinned.files):
            rows = places[order][places[order, 0] == number, 1]
            ends = np.array(file.row_ends, np.int64)
            group_of = np.searchsorted(ends, rows, side="right")
            for group in np.unique(group_of).tolist():
                start = int(ends[group - 1]) if group else 0
                chosen.append((file, rows[group_of == group], start, int(ends[group]) - start))
        plan = plan_rows(name, config, None, chosen, spaces)
        place_of = np.argsort(order)
        of_held_out = np.array([number_of[query] for query in held_out.hashes.tolist()], np.int64)
        return cls(log, plan, place_of[: len(fit.hashes)], place_of[of_held_out], read_queries(plan, source))

    def embedded(self, rows: I64, usable: I64) -> I64:
        """Which of the `usable` queries each row of a part is, -1 for none; rows: ``fit`` or ``held_out``."""
        found = np.full(len(self.read.places), -1)
        found[usable] = np.arange(len(usable))
        there: I64 = found[rows]
        return there


class Asked:
    """The queries of the config, or none.

    Attributes:
        groups: {name: what is to be embedded}.
        answers: (n,) items that are right for the queries, by the relevance that is asked for: what was taken in the
            held-out traffic, or judged right; some of them often. Empty where another relevance decides.
        first_taken: (n,) items that were taken most in the traffic that orders, each once.
        fingerprint: of what measures, where it has answers.
    """

    def __init__(
        self,
        context: Context,
        config: QueriesConfig | None,
        source: Source,
        spaces: Mapping[str, str],
        quarantine: QuarantineConfig,
        relevance: Relevance,
        seed: int,
    ) -> None:
        self._context, self._source, self._config, self._seed = context, source, config, seed
        self._relevance = relevance
        self._plan: QueryPlan | None = None
        self._rows: QueryRows | None = None
        self._logged: _Logged | None = None
        self._measures = False  # whether the held-out traffic does
        self._events: I64 = np.empty(0, np.int64)  # of the held-out part: pairs of a query and an item, else queries
        self._num_usable, self._num_kept = 0, 0  # queries that have vectors, and events of such a query
        self._lacking = self._events_lacking = 0  # answers that the gallery does not have, and events that name one
        self._lacking_first = 0  # of those in `first_taken`
        self.groups: dict[str, UnitGroup] = {}
        self.answers: Objects = np.empty(0, object)
        self.first_taken: Objects = np.empty(0, object)
        self.fingerprint = ""
        if config is None:
            return
        if config.path is not None:
            inputs, judgements = pin_queries(context.store, config)
            self._plan = plan_queries(config, inputs, judgements, spaces, seed)
            self._add(context.files, "queries", self._plan, quarantine)
        if (found := read_log(context.store, config, source.id_type, seed)) is not None:
            pinned, log = found
            seen = config.model_dump(mode="json", exclude={"group_column"})
            name = fingerprint([pinned.model_dump(mode="json"), seen, dict(spaces), seed, MAX_LOGGED])
            self._logged = _Logged.of(name, of_log(config), pinned, log, spaces, source)
            self.first_taken = log.items[:MAX_LOGGED]
            self._add(context.files, "logged queries", self._logged.plan, quarantine)
            if config.path is None:
                self._measures, self.fingerprint = True, fingerprint([name, "held out"])
                self._hold_out(log.held_out)

    def _hold_out(self, part: LogPart) -> None:
        of_queries = seeded_hash(part.hashes, self._seed)
        if len(part.taken):
            self._events = draw_events(part.taken_traffic, of_queries[part.taken_by], MAX_QUERIES)
            if self._relevance == "log":
                self.answers = part.taken[self._events]
        else:
            self._events = draw_events(part.traffic, of_queries, MAX_QUERIES)

    def _add(self, files: Files, what: str, plan: QueryPlan, quarantine: QuarantineConfig) -> None:
        for model, units in plan.units.items():
            name = f"{what}, {model} model"
            self.groups[name] = UnitGroup(files, units[0].folder, name, units, quarantine)

    def read(self) -> None:
        """What the files say; raises if no query can have an answer."""
        if self._plan is None:
            return
        self._rows = read_queries(self._plan, self._source)
        if self._relevance == "qrels" and self._rows.judged is not None:
            right = [each.item for each in self._rows.judged if each.grade > 0]
            self.answers, self.fingerprint = np.empty(len(right), object), self._plan.fingerprint
            self.answers[:] = right

    def found(self, in_gallery: int, in_all: int) -> None:
        """How many of the distinct answers the gallery has, and of all of them: of the events that name one.

        Raises:
            InputError: none that was taken: then `item_id` is not what it is taken for.
        """
        self._lacking, self._events_lacking = len(set(self.answers.tolist())) - in_gallery, len(self.answers) - in_all
        if not in_gallery and self._relevance == "log":
            raise self._of_another_gallery(self.answers, f"{self._lacking:,} items that were taken", "measures")

    def ordered_by(self, in_gallery: int) -> None:
        """How many of `first_taken` the gallery has.

        Raises:
            InputError: none.
        """
        self._lacking_first = len(self.first_taken) - in_gallery
        if self._lacking_first and not in_gallery:
            raise self._of_another_gallery(self.first_taken, f"{self._lacking_first:,} items taken most", "orders")

    @property
    def _shown_paths(self) -> str:
        paths = self._config.log_path if self._config is not None else None
        return shown_paths(paths or "")

    def _of_another_gallery(self, items: Objects, which: str, part: str) -> InputError:
        return InputError(
            f"queries.log_path {self._shown_paths}: none of the {which} in the part that {part} is in the "
            f"gallery, such as {items[0]!r}. Column item_id must hold ids of gallery.id_column "
            f"{self._source.config.id_column!r}: cast or join them, or leave it out."
        )

    def queries(self, snapshot: str, new_dim: int) -> Queries | None:
        """The held-out queries with their vectors; None where there are none.

        Args:
            snapshot: fingerprint of the gallery that the order is made for.
        """
        if self._logged is not None and self._measures:
            return self._traffic(self._logged, snapshot, new_dim)
        if self._plan is None or self._rows is None:
            return None
        receipts = self._receipts("queries", self._plan)
        return load_queries(self._context.files, self._plan, self._rows, receipts, self._source, (snapshot, new_dim))

    def logged(self, new_dim: int) -> LoggedQueries | None:
        """What orders know of the log; None without one."""
        if self._logged is None:
            return None
        log, plan = self._logged.log, self._logged.plan
        usable, new, old = self._vectors(self._logged, new_dim)
        rows = self._logged.embedded(self._logged.fit, usable)
        there = np.flatnonzero(rows >= 0)
        if not len(there):
            raise self._none_embedded()
        taken = TakenItems.of(log.items, log.item_traffic) if len(log.items) else None
        name = fingerprint([plan.fingerprint, usable.tolist()])
        chosen = rows[there]
        return LoggedQueries(new[chosen], None if old is None else old[chosen], log.fit.traffic[there], taken, name)

    def _traffic(self, logged: _Logged, snapshot: str, new_dim: int) -> Queries:
        """The events whose query has its vectors; an event's answer is what was taken in it."""
        part, read = logged.log.held_out, logged.read
        usable, new, old = self._vectors(logged, new_dim)
        row_of = logged.embedded(logged.held_out, usable)
        asked = self._events if not len(part.taken) else part.taken_by[self._events]
        kept = np.flatnonzero(row_of[asked] >= 0)
        self._num_kept = len(kept)
        if not len(kept):
            raise self._none_embedded()
        distinct = Queries(
            ids=read.ids[usable],
            new=new,
            old=old,
            labels=None if read.labels is None else read.labels[usable],
            groups=None if read.groups is None else read.groups[usable],
            fingerprint=fingerprint([self.fingerprint, snapshot, usable.tolist(), len(self._events)]),
        )
        traffic = distinct.take(row_of[asked[kept]])
        ids = np.array([f"{query}#{number}" for number, query in enumerate(traffic.ids.tolist())], object)
        if not len(part.taken):
            return replace(traffic, ids=ids)
        answers = part.taken[self._events[kept]].tolist()
        judged = tuple(Judgement(row, answer) for row, answer in enumerate(answers))
        return replace(traffic, ids=ids, judged=judged, judged_as="log")

    def _vectors(self, logged: _Logged, new_dim: int) -> tuple[I64, F32, F32 | None]:
        receipts = self._receipts("logged queries", logged.plan)
        found = vectors_of_queries(self._context.files, logged.plan, logged.read, receipts, self._source, new_dim)
        self._num_usable = len(found[0])
        return found

    def _receipts(self, what: str, plan: QueryPlan) -> dict[str, Mapping[str, Receipt]]:
        return {model: self.groups[f"{what}, {model} model"].receipts for model in plan.units}

    def _none_embedded(self) -> InputError:
        return InputError(
            f"queries.log_path {self._shown_paths}: no query of a part of it has vectors that can be used. The "
            "receipts of its queries name each with its reason."
        )

    def notes(self, added: int) -> dict[str, str]:
        """{config key: what PLAN says of it} of judgements and log; added: how many of the answers joined the pairs."""
        notes = {}
        if self._relevance == "qrels" and len(self.answers):
            notes["queries.qrels_path"] = f"{added:,} of the {self._shown_answers()} judged right {_BESIDE}"
        if self._logged is not None:
            notes["queries.log_path"] = self._note_of_log(self._logged, added)
        return notes

    def _shown_answers(self) -> str:
        return f"{len(set(self.answers.tolist())):,} items that were"

    def _note_of_log(self, logged: _Logged, added: int) -> str:
        log, plan = logged.log, logged.plan
        receipts = self._receipts("logged queries", plan).values()
        seconds = sum(receipt.seconds for of_model in receipts for receipt in of_model.values())
        said = [f"ordered by {_shown(log.fit)}"]
        if self._lacking_first:
            first = f"{len(self.first_taken):,} items taken most there"
            said.append(f"{self._lacking_first:,} of the {first} are not in the gallery")
        if self._measures:
            cut = "by time" if log.cut == "time" else "by a hash of the query"
            events = f"as {self._num_kept:,} events"
            if len(part := log.held_out.taken_traffic):
                events += f" that name what was taken ({part.sum() / log.held_out.all_traffic:.0%} of that)"
            said.append(f"measured by {_shown(log.held_out)}, held out {cut}, {events}")
        if self._measures and len(self.answers):
            said.append(f"{added:,} of the {self._shown_answers()} taken there {_BESIDE}")
            if self._lacking:
                events = f"{self._events_lacking:,} of the {len(self.answers):,} events"
                said.append(f"{self._lacking:,} of these are not in the gallery, so that {events} cannot be measured")
        elif self._measures and not len(log.held_out.taken):
            said.append("no item was taken there, so what the new model alone returns is right")
        if plan.units:
            asked = len(logged.read.places)
            of_all = f"all {asked:,}" if self._num_usable == asked else f"{self._num_usable:,} of {asked:,}"
            said.append(f"queries that could be embedded: {of_all}, in {seconds:.1f} s of one embedder")
        return "; ".join(said)


def _shown(part: LogPart) -> str:
    whole = f"{part.all_traffic:,.0f}" if 10 <= part.all_traffic < 1e9 else f"{part.all_traffic:.3g}"
    asked = f"{part.covered:.0%} of {whole} asked"
    return f"{len(part.traffic):,} of {part.all_queries:,} distinct queries ({asked})"
