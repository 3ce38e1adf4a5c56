"""What the stages before PLAN came to, as the stages after it need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastfill_ray.config import IndexConfig, ObjectiveConfig
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.ordering.demand import TakenItems
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.stages.beginning import Beginning
from fastfill_ray.stages.choose import Decision
from fastfill_ray.stages.score import Scorer, Scores
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.train import TrainedAlignment
from fastfill_ray.stages.work import KnownRows
from fastfill_ray.types import Metric


@dataclass(frozen=True)
class Basis:
    """What a plan and every version of it are made from: the outputs of the stages before, and the config's parts.

    num_sampled: items that were sampled as pairs; those that teach nothing are not among `pairs`. pair_offsets: {unit
    of a chunk: offsets of the pairs in it}. known_pairs: those of them that were new before. taken: what users took, by
    the query log; None where it does not say. notes: {config key: what PLAN says of it}.
    reverse: the map that the queries' old vectors are from; None where they are the old model's. answers_per_added: see
    ``Evidence``. begins: what is new in version 0 of the plan whose order it is.
    """

    snapshot: Snapshot
    num_sampled: int
    pair_offsets: Mapping[str, tuple[int, ...]]
    known_pairs: KnownRows
    pairs: PairedItems
    queries: Queries
    decision: Decision
    scores: Scores
    objective: ObjectiveConfig
    waves: tuple[float, ...]
    index: IndexConfig
    begins: Beginning
    taken: TakenItems | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    reverse: TrainedAlignment | None = None
    answers_per_added: float | None = None

    @property
    def scorer(self) -> Scorer:
        return self.scores.scorer

    @property
    def metric(self) -> Metric:
        return self.scorer.source.metric

    @property
    def seed(self) -> int:
        return self.scorer.seed

    @property
    def fusion(self) -> Fusion | None:
        """The factors of fused stale vectors; None in stale mode `aligned`."""
        return self.decision.fusion(self.metric)

    @property
    def sources(self) -> dict[str, str]:
        """Digests of what a plan is made from and cannot go on without, {stage: digest}."""
        return {
            "snapshot": self.snapshot.cut,
            "choice": self.decision.digest,
            "alignment": self.scorer.trained.weights.sha256,
            "scores": self.scores.digest,
            **({} if self.reverse is None else {"reverse map": self.reverse.weights.sha256}),
        }
