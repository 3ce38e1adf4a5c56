"""The config: one frozen pydantic model, a part per stage; a stage gets only its part.

``load_config`` takes a YAML file, a dict or a ready model, applies ``a.b=c`` overrides, and turns every fault into one
``ConfigError`` that names the key, the value found and what is allowed. Checks that need the input's footers (columns,
dimensions, the pairs' share) are made by the snapshot stage, before anything is computed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fastfill_ray.config_command import Command
from fastfill_ray.config_faults import GIVEN, explain
from fastfill_ray.config_file import copied, read_yaml, set_value
from fastfill_ray.errors import ConfigError
from fastfill_ray.sanitize import hide
from fastfill_ray.types import Metric, Relevance, VectorDtype, fingerprint


def _plain_json(kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"kwargs are part of a model's identity and must be plain finite JSON values: {error}"
        ) from None
    return kwargs


# Without repr: Ray's dashboard and debuggers show what objects print of themselves.
Kwargs = Annotated[dict[str, Any], AfterValidator(_plain_json), Field(repr=False)]


def endpoint_fault(endpoint: str) -> str | None:
    """What is wrong with the URL of an S3 service, in words that repeat nothing of it; None if it can be used."""
    try:
        url = urlsplit(endpoint)
        is_service = url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        return "an http:// or https:// URL is expected"
    if "@" in endpoint or url.query or url.fragment:
        return (
            "the URL holds credentials or a query, which would get into logs and records; put credentials into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return None if is_service else "an http:// or https:// URL is expected"


def _endpoint(endpoint: str) -> str:
    if (fault := endpoint_fault(endpoint)) is not None:
        raise PydanticCustomError("unsafe_url", "{fault}", {"fault": fault})
    return endpoint


def _absolute(path: str) -> str:
    """Local paths do not depend on where the job is started; one place has one name."""
    if "@" in path.partition("://")[2].partition("/")[0]:
        raise PydanticCustomError(
            "unsafe_url",
            "the URL holds credentials, which would get into logs and records; put them into the environment",
        )
    return path if "://" in path and not path.startswith("file://") else os.path.abspath(path.removeprefix("file://"))


Location = Annotated[str, AfterValidator(_absolute)]


def _absolute_paths(value: Any) -> Any:
    """One path, or several sorted: neither their order nor a list of one is another request."""
    several = isinstance(value, list | tuple)
    given = list(value) if several else [value]
    if not given or not all(isinstance(path, str) and path for path in given):
        raise PydanticCustomError("paths", "a path or a list of paths is expected, such as [a.parquet, b.parquet]")
    paths = sorted(map(_absolute, given))
    for path, after in itertools.pairwise(paths):
        if path == after:
            raise PydanticCustomError("paths", "{path} is in the list twice; give it once", {"path": path})
    return paths[0] if len(paths) == 1 else tuple(paths)


# A table of the user's: a file, a folder, or a list of them.
Paths = Annotated[str | tuple[str, ...], BeforeValidator(_absolute_paths)]


def shown_paths(paths: str | Sequence[str]) -> str:
    """A table's path for a message; of a list the first and how many follow."""
    return paths if isinstance(paths, str) else f"{paths[0]} and {len(paths) - 1} more"


# What the run finds out itself, from the number of the gallery's rows.
Auto = Literal["auto"]


def _auto_or_given(value: Any) -> str:
    """Which of the two a value is: so a fault is told of that one alone."""
    return "auto" if isinstance(value, str) and value == "auto" else GIVEN


_AUTO = Annotated[Auto, Tag("auto")]
Count = Annotated[Annotated[int, Field(gt=0), Tag(GIVEN)] | _AUTO, Discriminator(_auto_or_given)]
Workers = Annotated[Annotated[int, Field(ge=0), Tag(GIVEN)] | _AUTO, Discriminator(_auto_or_given)]
Fractions = Annotated[
    Annotated[tuple[float, ...], Field(min_length=1), Tag(GIVEN)] | _AUTO, Discriminator(_auto_or_given)
]


class Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        """Few keys take a boolean. YAML reads `yes` and `on` as true, and pydantic would take true for the number 1."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if name in cls.model_fields and cls.model_fields[name].annotation is bool:
                continue
            parts = value if isinstance(value, list | tuple) else [value]
            if (wrong := next((part for part in parts if isinstance(part, bool)), None)) is not None:
                raise ValueError(
                    f"{name} is {wrong}; it does not take true or false (YAML reads yes, no, on and off as these)"
                )
        return values


_VECTOR_DTYPE = "element type of vectors that are stored as bytes, little-endian"


class GalleryConfig(Part):
    """The items: Parquet files."""

    path: Paths = Field(description="a Parquet file, a folder of them, or a list of both; local or s3://")
    id_column: str = Field("id", description="int64 or string, unique, never null")
    old_vector_column: str | None = Field(
        "embedding",
        description="lists of numbers, tensors with one axis, or bytes; null once every item is served by a new vector",
    )
    vector_dtype: VectorDtype | None = Field(None, description=_VECTOR_DTYPE)
    payload_columns: tuple[str, ...] = Field(min_length=1, description="what the embedder reads")
    label_column: str | None = Field(
        None, description="class or tags of an item; enables relevance `label`, a class also orders"
    )
    group_column: str | None = Field(None, description="subgroup of an item; kept with the index for per-group figures")
    weight_column: str | None = Field(None, description="how often an item is asked for; multiplies its priority")
    priority_column: str | None = Field(
        None, description="your own priority: policy `column` re-embeds larger ones earlier, missing ones last"
    )
    side_column: str | None = Field(None, description="cheap features per item, which the map reads beside the vector")
    version_column: str | None = Field(
        None, description="changes when an item's payload does, such as updated_at or an etag; a single value"
    )
    follow: bool = Field(True, description="adopt files that change while a run is going on, between two waves")
    max_removed: float = Field(
        0.1, ge=0, le=1, description="share of the served items that may be gone; more is refused until it is confirmed"
    )


class QueriesConfig(Part):
    """Held-out queries, or a log of what users asked. Without either the audit items are the queries, each excluded
    from its own ranking.
    """

    path: Paths | None = Field(None, description="a Parquet file, a folder of them, or a list of both")
    log_path: Paths | None = Field(
        None,
        description="what users asked: the columns below, optional count, weight, time, and item_id: what was taken. "
        "Orders by it; without `path` its last 30 % are the held-out queries",
    )
    id_column: str = Field("id", description="what qrels refer to")
    payload_columns: tuple[str, ...] = Field(min_length=1)
    label_column: str | None = None
    group_column: str | None = Field(None, description="subgroup of a query; enables per-group figures")
    qrels_path: Paths | None = Field(
        None, description="Parquet with columns query_id, item_id, optional score or relevance: the judgements"
    )
    new_vector_column: str | None = Field(None, description="vectors of the new model, if they are already there")
    old_vector_column: str | None = Field(None, description="vectors of the old model, if they are already there")
    vector_dtype: VectorDtype | None = Field(None, description=_VECTOR_DTYPE)


class NewModelConfig(Part):
    embedder: str = Field(pattern=r"^[\w.]+:\w+$", description="module:Class, built once per actor with `kwargs`")
    kwargs: Kwargs = Field(default_factory=dict)
    dim: int = Field(gt=0)
    metric: Metric = "cosine"
    batch_size: int = Field(64, gt=0, description="rows per embedder call")
    classifier: Location | None = Field(
        None, description=".npz with weight (C, E) and bias (C,): the new model's own classifier"
    )


class OldModelConfig(Part):
    """Only used to embed the queries, for the old/old arm and the stale mode `fused`."""

    embedder: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    kwargs: Kwargs = Field(default_factory=dict)


class PairsConfig(Part):
    count: Count = Field("auto", description="items that get new vectors first; `auto`: by the number of rows")
    split: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="train, calibration, audit")

    @model_validator(mode="after")
    def _split_is_a_partition(self) -> Self:
        if any(share <= 0 for share in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"pairs.split is {list(self.split)}; three shares above 0 that sum to 1 are expected")
        return self


class ObjectiveConfig(Part):
    """What every choice, the gate and the stop look at.

    ``BackfillConfig`` says what a relevance that is left out, or `auto`, becomes. A request is named without what is at
    its default, so the defaults here stay what they are.
    """

    relevance: Relevance = "label"
    metric: Literal["cmc@1", "cmc@5", "map", "recall@1", "recall@10", "mrr", "ndcg@10"] = "map"


class AlignmentConfig(Part):
    method: Literal["auto", "fastfill", "fct", "kernel", "procrustes", "ridge"] = "auto"
    preset: Literal["default", "paper"] = "default"


class PolicyConfig(Part):
    """`policy: {column: NAME}` is short for policy `column` with ``gallery.priority_column``; another name, or another
    column there, is refused.
    """

    name: Literal[
        "auto", "random", "uncertainty", "entropy", "expected_gain", "class_margin", "class_loss", "demand", "taken",
        "column",
    ] = "auto"  # fmt: skip


class ServingConfig(Part):
    stale_mode: Literal["auto", "aligned", "fused"] = "auto"
    old_queries: Literal["embedder", "mapped"] = Field(
        "embedder",
        description="where the old vectors of queries are from that `fused` needs: the old model, or, where that is "
        "gone, a map from the queries' new vectors",
    )
    calibration: Literal["auto", "no_scale"] = Field(
        "auto",
        description="how stale scores are brought beside new ones; no_scale: by offsets alone, which stores that "
        "follow with `export --since` keep exactly",
    )
    max_regression: float = Field(
        0.0,
        ge=0,
        description="a version is published if its objective is at most this much lower than the published one's",
    )
    on_publish: Command = Field(
        (),
        description="program and arguments, run after what readers see has changed; FASTFILL_ROOT, FASTFILL_VERSION "
        "and FASTFILL_SEQUENCE are set",
    )


class StopConfig(Part):
    """When to end a run before its last wave. It is not part of the plan: change it, and the run resumes."""

    target_gain: float | None = Field(None, gt=0, le=1, description="share of the gain from old/old to new/new")
    budget_hours: float | None = Field(None, gt=0, description="work time of the plan's versions")


class IndexConfig(Part):
    factory: str = Field("Flat", description="faiss.index_factory string")
    stale_factory: str | None = Field(None, description="factory of stale segments where they need another one")
    segment_rows: int = Field(1_000_000, gt=0)


class ResourcesConfig(Part):
    """What the cluster gives. It is not part of the plan: change it, and the run resumes.

    The first run cuts the chunks; later changes do not move them.
    """

    embed_actors: tuple[int, int] = Field((1, 8), description="[min, max] actors of the pool")
    cpus_per_actor: float = Field(1, ge=0)
    gpus_per_actor: float = Field(0, ge=0)
    prepare_workers: Workers = Field(
        "auto",
        description="most processes, of a CPU each, that prepare payloads for the actors where the embedder offers it; "
        "`auto`: as many as there are CPUs that no actor can hold",
    )
    price_per_actor_hour: float | None = Field(
        None, gt=0, description="what an hour of one actor costs, in any currency: shown wherever actor hours are"
    )
    call_timeout_s: float = Field(300, gt=0, description="most seconds of one embedder call; six times that to build")
    chunk_rows: Count = Field("auto", description="most rows of a chunk; `auto`: by the number of rows")
    chunk_bytes: int = Field(32 << 20, gt=0)

    @model_validator(mode="after")
    def _pool_can_exist(self) -> Self:
        low, high = self.embed_actors
        if not 1 <= low <= high:
            raise ValueError(f"resources.embed_actors is {[low, high]}; [min, max] with 1 <= min <= max is expected")
        return self


class QuarantineConfig(Part):
    """How many rows may fail: the larger of the two limits. Above it the stage fails."""

    max_rows: int = Field(10, ge=0)
    max_fraction: float = Field(0.001, ge=0, le=1)

    def limit(self, rows: int) -> int:
        """Rows that may be quarantined out of `rows`."""
        return max(self.max_rows, int(self.max_fraction * rows))


class StorageConfig(Part):
    s3_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None, description="URL of an S3-compatible store; credentials come from the environment"
    )
    anonymous: StrictBool = Field(False, description="read the input without credentials, from public buckets")


class BackfillConfig(Part):
    """A backfill: what to read, how to align, order and index it, and where to write."""

    gallery: GalleryConfig
    queries: QueriesConfig | None = None
    new_model: NewModelConfig
    old_model: OldModelConfig = OldModelConfig()
    pairs: PairsConfig = PairsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    policy: PolicyConfig = PolicyConfig()
    serving: ServingConfig = ServingConfig()
    waves: Fractions = Field("auto", description="share of all items, new after each; `auto`: by the pairs' share")
    stop: StopConfig = StopConfig()
    index: IndexConfig = IndexConfig()
    resources: ResourcesConfig = ResourcesConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    storage: StorageConfig = StorageConfig()
    output: Location = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=1 << 63)

    @model_validator(mode="before")
    @classmethod
    def _relevance_by_what_is_there(cls, values: Any) -> Any:
        """A relevance that is left out, or `auto`, is the best that there is: the log's held-out traffic, labels,
        judgements, or else the full new model's own top k. Where nothing is said of the metric, the log is measured by
        MRR and the last by recall@10.
        """
        objective = values.get("objective", {}) if isinstance(values, Mapping) else None
        if not isinstance(objective, Mapping) or objective.get("relevance", "auto") != "auto":
            return values
        chosen = {"relevance": "new_model", "metric": "recall@10"}
        if _asks_the_log(values.get("queries")):
            chosen = {"relevance": "log", "metric": "mrr"}
        elif _has_labels(values.get("gallery"), values.get("queries")):
            chosen = {"relevance": "label"}
        elif _value(values.get("queries"), "qrels_path") is not None:
            chosen = {"relevance": "qrels"}
        return {**values, "objective": {**chosen, **objective, "relevance": chosen["relevance"]}}

    @model_validator(mode="before")
    @classmethod
    def _column_of_the_policy(cls, values: Any) -> Any:
        """`policy: {column: NAME}`, as one would write it."""
        policy = values.get("policy") if isinstance(values, Mapping) else None
        gallery = values.get("gallery") if isinstance(values, Mapping) else None
        if not isinstance(policy, Mapping) or "column" not in policy or not isinstance(gallery, Mapping):
            return values
        rest = {key: value for key, value in policy.items() if key != "column"}
        column, name = policy["column"], rest.setdefault("name", "column")
        named = gallery.get("priority_column") or column
        for key, found, expected in (("policy.name", name, "column"), ("gallery.priority_column", named, column)):
            if found != expected:
                raise ValueError(
                    f"policy.column is {column!r}, which says that {key} is {expected!r}, but {key} is {found!r}. "
                    "Leave one of the two keys out"
                )
        return {**values, "gallery": {**gallery, "priority_column": column}, "policy": rest}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        waves = [] if self.waves == "auto" else list(self.waves)
        if any(not 0 < wave <= 1 for wave in waves):
            raise ValueError(f"waves is {waves}; fractions above 0 and at most 1 are expected")
        if any(later <= earlier for earlier, later in itertools.pairwise(waves)):
            raise ValueError(f"waves is {waves}; strictly increasing fractions are expected")
        labels = _has_labels(self.gallery, self.queries)
        qrels = self.queries is not None and self.queries.qrels_path is not None
        relevance = self.objective.relevance
        if self.queries is not None:
            _check_queries(self.queries)
        if relevance == "log" and not _asks_the_log(self.queries):
            raise ValueError(
                "objective.relevance is 'log' but the held-out queries are not from a log: set queries.log_path and "
                "leave queries.path out, or choose another relevance"
            )
        if relevance == "label" and not labels:
            where = "gallery.label_column" if self.gallery.label_column is None else "queries.label_column"
            raise ValueError(
                f"objective.relevance is 'label' but {where} is not set; set it, or leave relevance out: it is then "
                "what the columns allow"
            )
        if relevance == "qrels" and not qrels:
            raise ValueError(
                "objective.relevance is 'qrels' but queries.qrels_path is not set; set it, or leave relevance out"
            )
        if (
            self.serving.stale_mode == "fused"
            and self.queries is not None
            and self.old_model.embedder is None
            and self.queries.old_vector_column is None
            and self.serving.old_queries != "mapped"
        ):
            raise ValueError(
                "serving.stale_mode is 'fused' but neither old_model.embedder nor queries.old_vector_column is set; "
                "fused vectors are searched with the queries' old vectors, too. Where the old model is gone, set "
                "serving.old_queries to 'mapped'"
            )
        if self.serving.old_queries == "mapped":
            self._check_mapped()
        if self.policy.name in ("demand", "taken") and (self.queries is None or self.queries.log_path is None):
            raise ValueError(
                f"policy.name is {self.policy.name!r} but queries.log_path is not set; it orders by what users asked"
            )
        if self.policy.name == "column" and self.gallery.priority_column is None:
            raise ValueError(
                "policy.name is 'column' but gallery.priority_column is not set; name the column of the priorities"
            )
        if self.policy.name in ("class_margin", "class_loss") and self.gallery.label_column is None:
            raise ValueError(
                f"policy.name is {self.policy.name!r} but gallery.label_column is not set; it reads the items' labels"
            )
        if self.policy.name == "entropy" and self.gallery.label_column is None and self.new_model.classifier is None:
            raise ValueError(
                "policy.name is 'entropy' but there is neither new_model.classifier nor gallery.label_column to fit "
                "one on; set one of them, or choose another policy"
            )
        if self.new_model.classifier is not None and self.gallery.label_column is None:
            raise ValueError(
                "new_model.classifier is set but gallery.label_column is not; the classifier's loss needs labels"
            )
        return self

    def _check_mapped(self) -> None:
        """Refuse mapped old queries where there are real ones, and where no queries say how well they serve."""
        if self.queries is None:
            raise ValueError(
                "serving.old_queries is 'mapped' but there is no section `queries`: without users' queries nothing "
                "says how well mapped ones serve. Give queries.log_path or queries.path, or leave the key out"
            )
        if self.old_model.embedder is not None or self.queries.old_vector_column is not None:
            raise ValueError(
                "serving.old_queries is 'mapped' but old_model.embedder or queries.old_vector_column is set; real old "
                "vectors serve better. Leave one of the two out"
            )


def _check_queries(queries: QueriesConfig) -> None:
    """Refuse queries that are from nowhere, and judgements of queries that have no ids."""
    if queries.path is None and queries.log_path is None:
        raise ValueError(
            "queries has neither path nor log_path; set one of them, or leave `queries` out to use the audit items"
        )
    if queries.path is None and queries.qrels_path is not None:
        raise ValueError(
            "queries.qrels_path judges the queries of queries.path, which is not set; of a log, item_id says what "
            "was taken"
        )


def _asks_the_log(queries: Any) -> bool:
    """Whether the held-out queries are traffic of a log; section as in ``_value``."""
    return _value(queries, "log_path") is not None and _value(queries, "path") is None


def _value(section: Any, key: str) -> Any:
    """Of a section that may not be checked yet, or not be there."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


def _has_labels(gallery: Any, queries: Any) -> bool:
    """Whether relevance `label` can be told; sections as in ``_value``."""
    sections = (gallery,) if queries is None else (gallery, queries)
    return all(_value(section, "label_column") is not None for section in sections)


# Settings that may change between runs of one plan: the run resumes.
_OUTSIDE_THE_PLAN: Any = {
    "resources": True,
    "quarantine": True,
    "storage": True,
    "output": True,
    "gallery": {"follow", "max_removed"},
    "new_model": {"batch_size"},
    "serving": {"max_regression", "on_publish"},
    "stop": True,
}


LATER_KEYS = (
    ("gallery", "priority_column", None),
    ("queries", "log_path", None),
    ("serving", "old_queries", "embedder"),
    ("serving", "calibration", "auto"),
)


def plan_settings(config: BackfillConfig, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """The part of the config that a plan is bound to; models' kwargs, which may hold credentials, as a fingerprint.

    Without the defaults it identifies a request: a later release that adds a key then still knows an older plan.
    """
    settings = config.model_dump(mode="json", exclude=_OUTSIDE_THE_PLAN, exclude_defaults=exclude_defaults)
    for section, name, default in LATER_KEYS:  # a plan of before lacks them, and is the same plan without them
        if (settings.get(section) or {}).get(name, "") == default:
            del settings[section][name]
    for model in ("new_model", "old_model"):
        if "kwargs" in settings.get(model, {}):
            settings[model]["kwargs"] = fingerprint(settings[model]["kwargs"])
    return settings


def input_paths(config: BackfillConfig) -> dict[str, str | tuple[str, ...] | None]:
    """{config key: path or paths} of everything that a plan reads."""
    paths: dict[str, str | tuple[str, ...] | None] = {
        "gallery.path": config.gallery.path,
        "new_model.classifier": config.new_model.classifier,
    }
    if config.queries is not None:
        paths |= {"queries.path": config.queries.path, "queries.qrels_path": config.queries.qrels_path}
        if config.queries.log_path is not None:
            paths["queries.log_path"] = config.queries.log_path
    return paths


def load_config(
    source: BackfillConfig | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()
) -> BackfillConfig:
    """The checked config.

    Args:
        source: a YAML file's path, a mapping, or a ready model.
        overrides: ``a.b=c`` strings; the value is read as YAML.

    The values of the models' kwargs are redacted from here on in all messages of this process.

    Raises:
        ConfigError: all faults, each with its key, what is allowed, and the value found unless it may be a secret.
    """
    if isinstance(source, BackfillConfig):
        values: Any = source.model_dump()
        where = "config"
    elif isinstance(source, Mapping):
        values, where = copied(source), "config"
    else:
        values, where = read_yaml(Path(source)), str(source)
    for override in overrides:
        set_value(values, override, BackfillConfig.model_fields)
    try:
        config = BackfillConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(explain(fault, BackfillConfig) for fault in error.errors())
        ) from None
    for model in (config.new_model, config.old_model):
        hide(model.kwargs)
    return config
