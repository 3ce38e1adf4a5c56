"""Everything about a request that can be refused before anything starts: from the config, listings and footers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastfill_ray.config import (
    LATER_KEYS,
    BackfillConfig,
    GalleryConfig,
    IndexConfig,
    NewModelConfig,
    PolicyConfig,
    QueriesConfig,
    input_paths,
    shown_paths,
)
from fastfill_ray.errors import ConfigError, InputError, SpaceMismatch, TooManyRemoved
from fastfill_ray.index.factory import check_factory
from fastfill_ray.inputs.labels import comparable_labels
from fastfill_ray.inputs.locate import InputStore, Listing
from fastfill_ray.inputs.query_log import ITEM, QueryLog
from fastfill_ray.inputs.table import TableInput, dim_of
from fastfill_ray.log.carry import Kept
from fastfill_ray.log.records import Init, Plan
from fastfill_ray.ordering.policies import CLASSIFIED, LABELLED
from fastfill_ray.ordering.schedule import Schedule, make_schedule
from fastfill_ray.stages.asked import answered_by, pin_log, read_log
from fastfill_ray.stages.embed import Models
from fastfill_ray.stages.queries import (
    LABELS,
    NEW_VECTORS,
    OLD_VECTORS,
    of_log,
    pin_queries,
    plan_queries,
    query_columns,
    read_queries,
)
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery, old_space_of, source_of
from fastfill_ray.storage import reach
from fastfill_ray.storage.files import split_scheme
from fastfill_ray.storage.local import local_path


def check_endpoint(config: BackfillConfig) -> None:
    """Refuse an S3 endpoint at which nobody listens, where anything is on S3.

    Raises:
        StorageError: see ``reach.check_endpoint``.
    """
    if any("s3://" in str(path) for path in (config.output, *input_paths(config).values())):
        reach.check_endpoint(config.storage.s3_endpoint)


def inspect(
    store: InputStore,
    config: BackfillConfig,
    listings: Mapping[str, Listing],
    before: Snapshot | None,
    ordered: Plan | None,
) -> Snapshot:
    """The gallery by its footers, once everything that can be refused before anything starts was looked at.

    Args:
        listings: as they were when the request was named. before: the gallery of the last plan.
        ordered: see ``ordered_by``.

    Raises:
        ConfigError, InputError: names the key or column, what was found and what is expected.
    """
    gallery, new = config.gallery, config.new_model
    inspected = inspect_gallery(store, listings["gallery.path"].files, gallery, config.resources, before)
    check_output(config.output, listings)
    num_pairs = schedule_of(config, inspected.rows, ordered).num_pairs
    check_index(config.index, new, inspected.old_dim, num_pairs, config.serving.stale_mode)
    check_labels(gallery, config.policy, new, inspected)
    if config.queries is not None:
        check_queries(store, config, config.queries, inspected)
    return inspected


def say_objective(store: InputStore, config: BackfillConfig, inspected: Snapshot) -> str:
    """What will decide, for people, as "mrr by log"; and why, where it is not what the config says."""
    has_taken = True
    if config.objective.relevance == "log" and config.queries is not None:
        read = read_log(store, config.queries, inspected.id_type, config.seed)
        has_taken = read is not None and len(read[1].held_out.taken) > 0
    objective = answered_by(config.objective, has_taken=has_taken)
    why = "" if has_taken else " (no item_id in the held-out part of the log says what was taken)"
    return f"{objective.metric} by {objective.relevance}{why}"


def schedule_of(config: BackfillConfig, rows: int, ordered: Plan | None) -> Schedule:
    """Pairs and waves: of a plan before, or for a gallery of `rows` rows.

    Args:
        ordered: see ``ordered_by``.

    Raises:
        ConfigError: see ``make_schedule``.
    """
    if ordered is None:
        return make_schedule(rows, config.pairs.count, config.pairs.split, config.waves)
    return Schedule(ordered.num_sampled or ordered.settings["pairs"]["count"], ordered.waves)


def ordered_by(gallery: GalleryConfig, plan: Plan | None, request: str, kept: Kept | None) -> Plan | None:
    """The plan whose pairs, waves and order are kept, however many rows the gallery has by now; None where they are
    made anew.

    Args:
        plan: the last one. request: what is asked for now.
        kept: None where a plan is not finished, or nothing is served.

    Raises:
        ConfigError: there are no old vectors, and something would still be scored by them.
    """
    unfinished = kept is None and plan is not None and plan.request == request
    followed = kept.plan if kept is not None and kept.follows else None
    steady = unfinished or (kept is not None and kept.follows and kept.is_steady)
    if gallery.old_vector_column is None and not steady:
        if kept is not None and kept.is_steady:
            raise ConfigError(
                "gallery.old_vector_column is null, but other settings have changed, too, and the order that they ask "
                "for is made from the old vectors. Put the settings back, or name the column."
            )
        raise ConfigError(
            "gallery.old_vector_column is null, but not every item is served by a new vector yet. Name the column "
            "of the old vectors until the backfill is finished."
        )
    return plan if unfinished else followed


def check_removed(gallery: GalleryConfig, removed: int, served: int) -> None:
    """Raises TooManyRemoved: a folder that is half uploaded must not empty an index."""
    if removed > gallery.max_removed * served:
        raise TooManyRemoved(
            f"gallery.path {shown_paths(gallery.path)}: {removed:,} of the {served:,} items that are served are not in "
            f"it any more, gallery.max_removed allows {gallery.max_removed:.0%}. Nothing was changed. Put the files "
            "back, or confirm with --allow-removals."
        )


def list_inputs(store: InputStore, paths: Mapping[str, str | Sequence[str] | None]) -> dict[str, Listing]:
    """What is read, and what is not, of everything that a plan reads.

    Args:
        paths: {config key: path or paths}.

    Raises:
        ConfigError: there is nothing at a path, or a folder of a table format; names its key.
    """
    listings = {}
    for key, path in paths.items():
        try:
            listings[key] = store.listing(path) if path is not None else Listing(())
        except InputError as error:
            raise ConfigError(f"{key}: {error}") from error
    return listings


def input_pins(listing: Listing) -> list[list[Any]]:
    """Path, size and tag of every input file."""
    return [[file.path, file.size, file.tag] for file in listing.files]


def check_output(output: str, listings: Mapping[str, Listing]) -> None:
    """Refuse an output folder whose files would be taken for input, through links as well."""
    scheme, rest = split_scheme(output)
    real = os.path.realpath(local_path(rest)) if scheme == "file" else f"{scheme}://{rest}"
    for key, listing in listings.items():
        for folder in listing.folders:
            if f"{real}/".startswith(f"{folder.rstrip('/')}/"):
                raise ConfigError(
                    f"output: {output} lies in {key} {folder}; files written there would be taken for input. "
                    "Choose a folder outside of it."
                )


def check_index(index: IndexConfig, new: NewModelConfig, old_dim: int, num_pairs: int, stale_mode: str) -> None:
    """Refuse index factories that cannot hold the vectors, or be trained on the pairs."""
    check_factory(index.factory, new.dim, new.metric, 2 * num_pairs)
    key = "index.stale_factory"
    if stale_mode == "fused":
        for dim in _fused_dims(new, old_dim):
            check_factory(_stale_factory(index), dim, new.metric, num_pairs, f"{key} (of fused vectors)")
    elif index.stale_factory is not None:
        check_factory(index.stale_factory, new.dim, new.metric, 2 * num_pairs, key)


def can_fuse(config: BackfillConfig, models: Models, old_dim: int, num_pairs: int) -> bool:
    """Whether `auto` may choose fused: users can ask with old vectors, and the index of stale ones can hold them."""
    index, queries = config.index, config.queries
    given = queries is not None and queries.old_vector_column is not None
    if not given and models.old.embedder is None and config.serving.old_queries != "mapped":
        return False
    try:
        for dim in _fused_dims(models.new, old_dim):
            check_factory(_stale_factory(index), dim, models.new.metric, num_pairs)
    except ConfigError:
        return False
    return True


def check_labels(gallery: GalleryConfig, policy: PolicyConfig, new: NewModelConfig, inspected: Snapshot) -> None:
    """Refuse lists of labels for what learns one class per item.

    Raises:
        ConfigError: names the key and the column, what was found and what is expected.
    """
    kind = inspected.label_kind or ""
    explicit = {"new_model.classifier": new.classifier is not None}
    explicit[f"policy.name {policy.name!r}"] = policy.name in LABELLED | CLASSIFIED
    for key, chosen in explicit.items():
        if chosen and kind.startswith("list of "):
            raise ConfigError(
                f"{key} needs one class per item, but the labels in gallery.label_column {gallery.label_column!r} are "
                f"lists ({kind}). Name a column of single labels, or leave that key out."
            )


def check_queries(store: InputStore, config: BackfillConfig, queries: QueriesConfig, inspected: Snapshot) -> None:
    """Refuse queries and a query log that do not fit the gallery: their labels' type, the dimensions of given vectors,
    what is said of them. All of it is read: nothing that is wrong with it waits for the gallery's rows.

    Raises:
        ConfigError, InputError: names the key or column, what was found and what is expected.
    """
    if queries.path is not None:
        inputs, judgements = pin_queries(store, queries, inspected.id_type)
        check_query_columns(store, config, queries, inputs, inspected)
        spaces = Models(config.new_model, config.old_model).fingerprints()
        plan = plan_queries(queries, inputs, judgements, spaces, config.seed)
        read_queries(plan, source_of(store, config, inspected))
    if queries.log_path is not None:
        pinned = pin_log(store, queries, queries.log_path, inspected.id_type)
        check_query_columns(store, config, of_log(queries), pinned, inspected)
        read = read_log(store, queries, inspected.id_type, config.seed)
        if config.policy.name == "taken" and read is not None:
            check_taken(shown_paths(queries.log_path), *read)


def check_taken(path: str, pinned: TableInput, log: QueryLog) -> None:
    """Raises ConfigError if the part of a log that orders does not say what was taken: policy `taken` reads it."""
    if log.item_traffic.any():
        return
    later = " in the part that orders, only in the held-out one" if log.held_out.taken_traffic.any() else ""
    mend = "add a column" if ITEM in pinned.absent else "fill in its column"
    raise ConfigError(
        f"policy.name is 'taken' but queries.log_path {path}: the query log names no items that were taken{later}; "
        f"{mend} {ITEM}, or choose another policy"
    )


def check_query_columns(
    store: InputStore, config: BackfillConfig, queries: QueriesConfig, inputs: TableInput, inspected: Snapshot
) -> None:
    """Refuse labels of another type than the gallery's, and given vectors of other dimensions.

    Args:
        inputs: the files of queries or of a log.

    Raises:
        ConfigError, InputError: names the key or column, what was found and what is expected.
    """
    gallery, new = config.gallery, config.new_model
    kind, expected = inputs.kinds.get(LABELS), inspected.label_kind
    if kind is not None and expected is not None and not comparable_labels(kind, expected):
        raise ConfigError(
            f"{LABELS}: column {queries.label_column!r} is {kind}, but gallery.label_column {gallery.label_column!r} "
            f"is {expected}; they must be of one kind to be compared"
        )
    columns = query_columns(queries)
    for key, dim, source in (
        (NEW_VECTORS, new.dim, "new_model.dim"),
        (OLD_VECTORS, inspected.old_dim, "the gallery's old vectors"),
    ):
        if key in columns and (there := dim_of(store, inputs, columns[key])) != dim:
            name = columns[key].name
            raise ConfigError(f"{key}: column {name!r} holds vectors of {there} dims, expected {dim} as {source}")


def spaces_of(config: BackfillConfig, snapshot: Snapshot, bound: Init | None) -> Init:
    """What the root would be bound to.

    Args:
        bound: what it is bound to.
    """
    old_space = old_space_of(config.gallery, snapshot.old_dim)
    if bound is not None and config.gallery.old_vector_column is None:
        old_space = bound.old_space  # nothing depends on it any more
    return Init(
        id_type=snapshot.id_type,
        metric=config.new_model.metric,
        old_dim=snapshot.old_dim,
        new_dim=config.new_model.dim,
        old_space=old_space,
        new_space=Models(config.new_model, config.old_model).fingerprints()["new"],
    )


def check_bound(output: str, bound: Init | None, wanted: Init) -> None:
    """Refuse a root that is bound to other spaces."""
    if bound is not None and bound != wanted:
        have, want = bound.model_dump(), wanted.model_dump()
        differs = "; ".join(
            f"{key} is {have[key]!r}, this run has {want[key]!r}" for key in want if have[key] != want[key]
        )
        raise SpaceMismatch(
            f"{output} is bound to other spaces: {differs} (new_space: the embedder, its kwargs or dim; old_space: the "
            "old vectors' column or dim). Choose another output."
        )


def changed_settings(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """What differs from the settings of a plan, key by key."""
    unsaid = {f"{section}.{name}": default for section, name, default in LATER_KEYS}
    now, then = unsaid | _leaves(now), unsaid | _leaves(then)
    changed = [
        f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in {**then, **now} if then.get(key) != now.get(key)
    ]
    return "; ".join(changed) or "files of the gallery, the queries or the log were added, changed or removed"


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= _leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return leaves


def _stale_factory(index: IndexConfig) -> str:
    return index.stale_factory or index.factory


def _fused_dims(new: NewModelConfig, old_dim: int) -> tuple[int, int]:
    """Dimensions that fused vectors can have; the second where old vectors alone serve best."""
    return old_dim + new.dim, old_dim
