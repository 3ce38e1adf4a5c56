"""The log's records and the receipts.

A record is an envelope (sequence number, chain to the one before, transaction id, epoch, checksum) around one typed
body. Bodies and receipts are frozen pydantic models that refuse unknown keys: a reader of an older release must not
guess. What a log says in all is ``log.state``. Nothing here reads a clock, a file or a random source.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fastfill_ray.experiment.results import ChoiceResult
from fastfill_ray.ordering.ids import NO_IDS, subtract_digests
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.types import IdType, Metric, Model, RelativePath, Relevance, Scope

# Of the records as a whole: a root of another format is refused (log.envelope).
FORMAT = 3
# The reason of a PUBLISH that a person asked for.
ROLLBACK = "rollback"


class FileRef(Model):
    """One immutable object under the output root."""

    path: RelativePath
    size: int = Field(ge=0, description="bytes")
    sha256: str
    tag: str = Field(
        default="", description="the store's own mark of the object (ETag, mtime) when it was verified; empty: none"
    )


class MetricValue(Model):
    """The mean of one metric over its queries with a bootstrap 95 % interval."""

    scope: Scope
    relevance: Relevance
    metric: str
    group: str | None = Field(default=None, description="only the queries of this group; all of them if null")
    calibrated: bool = True
    value: float
    low: float
    high: float
    queries: int
    depth: int = Field(description="ranks looked at; equal to the searched items where the ranking is complete")


class FlipValue(Model):
    """Shares of the queries that got worse (nfr) and better (pfr), see retrieval.flips; as served."""

    scope: Scope
    relevance: Relevance
    metric: str
    against: Literal["old/old", "version before"]
    nfr: float
    nfr_low: float
    nfr_high: float
    pfr: float
    pfr_low: float
    pfr_high: float
    mean_gain: float
    mean_loss: float
    queries: int


class Deletion(Model):
    """The rows of one segment that readers skip: superseded ones for good, deleted ones (by DELETE) until UNDELETE."""

    file: FileRef = Field(
        description="Parquet: `row` int32, ascending, each once; `deleted` bool, true where a DELETE hides the row"
    )
    rows: int = Field(gt=0)
    ids_digest: str = Field(description="of the ids of `rows`")
    deleted_rows: int = Field(ge=0, description="the part of `rows` that a DELETE hides")
    deleted_ids_digest: str = Field(description="of the ids of `deleted_rows`")

    @model_validator(mode="after")
    def _deleted_rows_are_a_part(self) -> Self:
        if self.deleted_rows > self.rows:
            raise ValueError(f"deleted_rows is {self.deleted_rows}, at most rows, {self.rows}, is expected")
        return self

    @property
    def superseded_rows(self) -> int:
        """Rows that are not of the plan any more: embedded since, changed, or gone from the gallery."""
        return self.rows - self.deleted_rows

    @property
    def superseded_ids_digest(self) -> str:
        return subtract_digests(self.ids_digest, self.deleted_ids_digest)


class Segment(Model):
    """One immutable index file and its ids: one bucket x one wave x stale or new; and which of its rows are skipped."""

    bucket: int = Field(ge=0)
    wave: int = Field(ge=0)
    state: Literal["stale", "new"]
    space: Literal["aligned", "new", "fused"]
    dim: int = Field(gt=0)
    rows: int = Field(gt=0)
    ids_digest: str
    index: FileRef
    ids: FileRef
    calibration: Calibration = Calibration()
    fusion: Fusion | None = Field(default=None, description="set iff the space is fused")
    deletion: Deletion | None = Field(default=None, description="null: every row is searched")

    @model_validator(mode="after")
    def _fusion_is_of_its_space(self) -> Self:
        if (self.space == "fused") != (self.fusion is not None):
            raise ValueError(f"space is {self.space!r}, fusion is {self.fusion!r}; set iff the space is fused")
        return self

    @model_validator(mode="after")
    def _deletion_is_of_its_rows(self) -> Self:
        if self.live_rows < 0:
            raise ValueError(f"its deletion hides more rows than the {self.rows} that it has")
        return self

    @property
    def live_rows(self) -> int:
        """Rows that a search can return."""
        return self.rows - (0 if self.deletion is None else self.deletion.rows)

    @property
    def plan_rows(self) -> int:
        """Rows that count towards the plan: live ones, and those that a DELETE hides."""
        return self.rows - (0 if self.deletion is None else self.deletion.superseded_rows)

    @property
    def plan_ids_digest(self) -> str:
        """Of the ids of ``plan_rows``."""
        if self.deletion is None:
            return self.ids_digest
        return subtract_digests(self.ids_digest, self.deletion.superseded_ids_digest)

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Every object that it is read from."""
        return (self.index, self.ids) if self.deletion is None else (self.index, self.ids, self.deletion.file)

    @property
    def needs_old_queries(self) -> bool:
        """Whether it is searched with the queries' old vectors, too."""
        return self.fusion is not None and self.fusion.old > 0


class Verdict(Model):
    """The gate's decision on one version."""

    publish: bool
    reason: str
    difference: float | None = Field(
        default=None, description="objective, this version minus the one it is held against"
    )
    low: float | None = None
    high: float | None = None


class Init(Model):
    kind: Literal["INIT"] = "INIT"
    format: int = FORMAT
    id_type: IdType
    metric: Metric
    old_dim: int
    new_dim: int
    old_space: str = Field(description="fingerprint of the old vectors' space")
    new_space: str = Field(description="fingerprint of the new model: embedder, kwargs, dim")


class Claim(Model):
    kind: Literal["CLAIM"] = "CLAIM"
    claimed: int = Field(ge=1, description="the epoch that the writer of this record owns from here on")


class Prediction(Model):
    """What the experiment promises of one version before anything is spent."""

    scope: Scope = Field(default="audit", description="where it is to be measured: the published index, or audit items")
    fraction: float = Field(description="share of the gallery that is new then, pairs included")
    relevance: Relevance
    metric: str
    value: float
    low: float
    high: float
    queries: int | None = Field(
        default=None, description="that it is a mean over; null: not known, of a plan of before"
    )


class Changes(Model):
    """How the gallery of a plan differs from that of the version which the plan begins with, in items."""

    added: int = Field(ge=0)
    changed: int = Field(ge=0, description="embedded before, with another payload")
    removed: int = Field(ge=0)

    @property
    def items(self) -> int:
        """Items that differ."""
        return self.added + self.changed + self.removed


class Plan(Model):
    kind: Literal["PLAN"] = "PLAN"
    plan: str = Field(description="fingerprint of snapshot, pairs, alignment, policy, stale mode, waves and index")
    request: str = Field(description="fingerprint of `settings` and the input files' pins")
    settings: dict[str, Any] = Field(description="the config's plan part; kwargs of models only as a fingerprint")
    snapshot: str
    pairs: str
    alignment: str
    scores: str
    method: str
    policy: str
    stale_mode: Literal["aligned", "fused"]
    waves: tuple[float, ...]
    thresholds: tuple[int, ...] = Field(
        description="64-bit order keys: an item that is no pair is in the first wave k whose thresholds[k-1] <= its key"
    )
    wave_rows: tuple[int, ...] = Field(
        description="rows of waves 0 (the pairs), 1..W and of the rest that no wave reaches; sums to `rows`"
    )
    known_rows: tuple[int, ...] = Field(
        default=(), description="of `wave_rows`, those whose new vector is there already, so that they are not embedded"
    )
    rows: int
    ids_digest: str
    unusable_rows: int = Field(description="rows whose old vector cannot be used: absent until they are embedded")
    factory: str
    stale_factory: str
    segment_rows: int
    units: FileRef = Field(description="the work list: rows per (chunk, wave)")
    templates: dict[str, FileRef]
    objective: str
    baselines: dict[str, tuple[MetricValue, ...]] = Field(
        description="arms old/old and new/new, and both with a prior of what users took where a log says that"
    )
    baseline_queries: FileRef | None = Field(description="old/old per query, for the gate")
    choices: dict[str, str] = Field(default_factory=dict, description="why each `auto` became what it is")
    form: Literal["identity", "offset", "offset_by_wave", "scale_offset", "scale_offset_by_wave"] = Field(
        default="offset", description="which parameters of the calibration are fitted"
    )
    fitted_by: Relevance | None = Field(
        default=None, description="relevance that choice and calibration look at; null: the objective's"
    )
    prediction: tuple[Prediction, ...] = Field(default=(), description="one per version, in wave order")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="digests of what the plan is made from: made again, it has to be the same to go on",
    )
    choice: ChoiceResult | None = Field(default=None, description="winner, runner-up, margin and trials")
    fusion: Fusion | None = Field(default=None, description="set iff the stale mode is fused")
    version_waves: tuple[int, ...] = Field(
        min_length=1,
        description="the wave that each version of the plan stands after; the first one is not 0 where the plan begins "
        "with a version that there is",
    )
    num_sampled: int | None = Field(
        default=None, gt=0, description="items that were sampled as pairs; null: as many as `settings` say"
    )
    first_share: float = Field(default=0.0, description="of the items whose order it is: new from version 0 on")
    carried_share: float = Field(default=0.0, description="of the same items: new before the order was made")
    reverse: tuple[FileRef, FileRef] | None = Field(
        default=None,
        description="weights and description of the map from new vectors to old ones, where queries are mapped by one",
    )
    inputs: str = Field(default="", description="fingerprint of the pins of queries, qrels and classifier")
    follows: str | None = Field(
        default=None,
        description="the plan whose pairs, map, policy and thresholds this one keeps for a changed gallery",
    )
    base: int | None = Field(default=None, description="the version that the plan begins with")
    inherited: FileRef | None = Field(default=None, description="the segments of `base`, without what is not true now")
    first_bucket: int = Field(
        default=0, ge=0, description="buckets before it are those of `follows`, without what came"
    )
    known: FileRef | None = Field(default=None, description="all new vectors that there were when the plan was made")
    changes: Changes | None = Field(default=None, description="against `base`; null without one")

    @property
    def root(self) -> str:
        """The plan that pairs, map and thresholds are from."""
        return self.follows or self.plan

    def newest_wave(self, version: int) -> int:
        """The last wave whose rows are new in a version of the plan, counted from 0.

        The first version of a plan that follows shows the gallery as it is, before anything of it is embedded, unless
        it is the only one.
        """
        is_change = self.follows is not None and version == 0 and len(self.version_waves) > 1
        return 0 if is_change else self.version_waves[version]

    @model_validator(mode="after")
    def _fusion_is_of_its_mode(self) -> Self:
        if (self.stale_mode == "fused") != (self.fusion is not None):
            raise ValueError(f"stale_mode is {self.stale_mode!r}, fusion is {self.fusion!r}; set iff it is fused")
        return self


class Version(Model):
    kind: Literal["VERSION"] = "VERSION"
    version: int = Field(ge=0)
    plan: str
    wave: int = Field(ge=0)
    segments: FileRef = Field(description="the list of its segments, in the order in which they are searched")
    num_segments: int = Field(ge=0)
    index_bytes: int = Field(ge=0, description="of all files of its segments")
    stale_rows: int = Field(ge=0, description="rows of `rows` that are stale")
    rows: int = Field(description="items of the plan that its segments hold, also those that a DELETE hides")
    new_rows: int
    quarantined: int = Field(ge=0, description="rows of waves <= wave that stayed stale because embedding them failed")
    absent: int = Field(
        ge=0,
        description="rows that are not embedded yet and have no stale vector: the old one is unusable, or gone",
    )
    absent_digest: str = Field(default=NO_IDS, description="ids digest of the absent rows")
    deleted: int = Field(default=0, ge=0, description="rows of `rows` that a DELETE hid when the version was made")
    deletions: str = Field(
        default="",
        description="fingerprint of the deletions that were in force then (index.deletions): while it is theirs, the "
        "deletion vectors flag every row whose id is deleted, and no other",
    )
    fraction: float = Field(description="new_rows / rows of the plan")
    ids_digest: str = Field(description="of the ids of `rows`; with `absent_digest` it sums to the plan's")
    metrics: tuple[MetricValue, ...]
    query_metrics: FileRef | None
    verdict: Verdict
    seconds: float = Field(description="work time of this version: embedding, building and evaluating")
    final: bool
    embed_seconds: float = Field(default=0.0, ge=0, description="the embedding part of `seconds`")
    flips: tuple[FlipValue, ...] = ()
    stopped: str | None = Field(default=None, description="why the config's `stop` ended the run here; null if not")
    cause: Literal["wave", "change"] = Field(
        default="wave", description="a change follows the gallery from `base` on, and does not pass the gate"
    )
    base: int | None = Field(default=None, description="the version that its segments began with; null for none")


class Publish(Model):
    kind: Literal["PUBLISH"] = "PUBLISH"
    version: int = Field(ge=0)
    reason: str = "gate"


class Expire(Model):
    kind: Literal["EXPIRE"] = "EXPIRE"
    versions: tuple[int, ...]


class _Deletion(Model):
    """A set of ids as a file: who reads the log alone does not learn them, and its size does not grow with them.

    ids: Parquet with one column ``hash``, fixed_size_binary(16), ascending and unique: blake2b(str(id)) with the salt
    as its key (``index.deletions``).
    """

    ids: FileRef
    rows: int = Field(gt=0, description="ids in the file")
    salt: str = Field(
        pattern=r"^[0-9a-f]{32}$",
        description="16 bytes as hex, the same in all records of a root: one pass of hashing serves every file",
    )


class Delete(_Deletion):
    """Readers leave these ids out, whatever version they open."""

    kind: Literal["DELETE"] = "DELETE"


class Undelete(_Deletion):
    """The deletions of these ids before this record are undone."""

    kind: Literal["UNDELETE"] = "UNDELETE"


Body = Annotated[Init | Claim | Plan | Version | Publish | Expire | Delete | Undelete, Field(discriminator="kind")]
