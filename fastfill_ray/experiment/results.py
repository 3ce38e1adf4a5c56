"""What an experiment found, as typed records: the log keeps them, the report shows them."""

from __future__ import annotations

from pydantic import Field

from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.types import Model, StaleMode


class MeanValue(Model):
    """A mean over `queries` queries with its bootstrap 95 % interval [low, high]."""

    value: float
    low: float
    high: float
    queries: int


class CandidateResult(Model):
    """One way to run a backfill, as the log keeps it."""

    method: str
    norms_kept: bool = Field(default=False, description="aligned vectors keep the norms that the map gives them")
    stale_mode: StaleMode
    weight: float = Field(description="the aligned score's share of a stale item's score; 1 in stale mode aligned")
    policy: str
    calibration: Form


class TrialResult(CandidateResult):
    """A candidate that was tried. Areas compare within one stage and one number of queries."""

    area: float = Field(
        description="cross-fitted mean of the objective along a whole backfill of the calibration pairs"
    )
    stage: str = Field(description="the stage of the choice that it was tried in")
    queries: int = Field(description="that the area is a mean over")


class ChoiceResult(Model):
    """What was chosen, what came second, by how much, and everything that was tried."""

    objective: str = Field(description="relevance/metric that chose")
    winner: CandidateResult
    runner_up: CandidateResult | None = None
    margin: MeanValue | None = Field(
        default=None, description="area of the winner minus that of the runner-up, paired over the audit queries"
    )
    expected: MeanValue | None = Field(
        default=None, description="the winner's cross-fitted area over all calibration queries"
    )
    trials: tuple[TrialResult, ...] = Field(default=(), description="the last stage first, best first within a stage")
