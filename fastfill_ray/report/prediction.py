"""What PLAN promised beside what was measured: values, shares of the gain, and how far off the promise was.

A prediction says in which scope it is to be measured. What was predicted for the published index was corrected for its
size; earlier releases predicted for the audit items alone.

The share of the gain is (value - start) / (end - start). On the audit items start and end are old/old and new/new; on
the published index they are old/old and the last version, predicted or measured, where everything is re-embedded.
Where old/old is not known, a series starts at its own version 0, whose share then is 0. There is no share where the
end is not surely above the start, by its interval: a share of nothing is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastfill_ray.log.records import MetricValue, Plan, Prediction
from fastfill_ray.log.state import State
from fastfill_ray.types import Scope

SCOPES: tuple[Scope, ...] = ("audit", "gallery")


@dataclass(frozen=True)
class Gain:
    """From where to where a metric rises; `end` is above `start`."""

    start: float
    end: float

    def share(self, value: float) -> float:
        return (value - self.start) / (self.end - self.start)

    def value(self, share: float) -> float:
        return self.start + share * (self.end - self.start)


def gain(start: float | None, end: float | None) -> Gain | None:
    """None where one of both is not known, or where the metric does not rise."""
    return Gain(start, end) if start is not None and end is not None and end > start else None


def _sure_gain(start: MetricValue | Prediction | None, end: MetricValue | Prediction | None) -> Gain | None:
    """None, too, where the interval of the end reaches down to the start."""
    if start is None or end is None or end.low <= start.value:
        return None
    return gain(start.value, end.value)


def mean_error(predicted: Sequence[float | None], measured: Sequence[float | None]) -> float | None:
    """Mean absolute difference of the shares over the versions that have both; None for fewer than two."""
    errors = [abs(p - m) for p, m in zip(predicted, measured, strict=True) if p is not None and m is not None]
    return sum(errors) / len(errors) if len(errors) >= 2 else None


@dataclass(frozen=True)
class Promise:
    """One version as it was predicted and as it was measured, by one relevance and metric.

    version: its number, None while there is none. measured, shares: by scope, only where known.
    """

    prediction: Prediction
    version: int | None
    share: float | None
    measured: dict[Scope, MetricValue]
    shares: dict[Scope, float]


def promises(state: State) -> tuple[Promise, ...]:
    """Every version that the last plan's order predicted, in wave order; empty where it predicted none."""
    plan = state.plan
    if plan is None or not plan.prediction:
        return ()
    # Of two versions after one wave the later one has caught up with changes; a change is of no wave.
    versions = {version.wave: version for version in reversed(state.order_versions) if version.cause == "wave"}
    measured: list[dict[Scope, MetricValue]] = [
        _by_scope(versions[wave].metrics, prediction) if wave in versions else {}
        for wave, prediction in enumerate(plan.prediction)
    ]
    promised = _promised_gain(plan)
    made = []
    for wave, (prediction, values) in enumerate(zip(plan.prediction, measured, strict=True)):
        version, gains = versions.get(wave), dict[Scope, Gain | None]()
        if version is not None:  # old/old is that of the gallery which the version shows
            own = state.order_plans[version.plan]
            gains = {scope: _measured_gain(state, own, measured, scope) for scope in SCOPES}
        made.append(
            Promise(
                prediction=prediction,
                version=None if version is None else version.version,
                share=None if promised is None else promised.share(prediction.value),
                measured=values,
                shares={s: way.share(m.value) for s, m in values.items() if (way := gains.get(s)) is not None},
            )
        )
    return tuple(made)


def prediction_error(state: State) -> dict[Scope, float | None]:
    """{scope: mean absolute difference of predicted and measured share of the gain}, None where it is not known."""
    made = promises(state)
    return {scope: mean_error([p.share for p in made], [p.shares.get(scope) for p in made]) for scope in SCOPES}


def drawn_prediction(state: State, relevance: str, metric: str, scope: Scope) -> tuple[Prediction, ...]:
    """The predicted curve on the scale of a chart in `scope`; empty where it has no place there.

    The audit items are a small gallery: their values are not those of the published index. In the scope that was not
    predicted the predicted shares of the gain are drawn, between that scope's own start and end.
    """
    plan = state.plan
    if plan is None or not plan.prediction:
        return ()
    first = plan.prediction[0]
    if (first.relevance, first.metric) != (relevance, metric):
        return ()
    if scope == first.scope:
        return plan.prediction
    promised, measured = _promised_gain(plan), _measured_gain(state, plan, [p.measured for p in promises(state)], scope)
    if promised is None or measured is None:
        return ()
    return tuple(
        p.model_copy(update={k: measured.value(promised.share(getattr(p, k))) for k in ("value", "low", "high")})
        for p in plan.prediction
    )


def prediction_json(state: State) -> list[dict[str, Any]]:
    """Per version: wave, version, fraction, relevance, metric; predicted, audit and gallery with interval and share."""

    def measured(promise: Promise, scope: Scope) -> dict[str, Any] | None:
        value = promise.measured.get(scope)
        return None if value is None else {**_interval(value), "share": promise.shares.get(scope)}

    return [
        {
            "wave": wave,
            "version": p.version,
            "fraction": p.prediction.fraction,
            "relevance": p.prediction.relevance,
            "metric": p.prediction.metric,
            "predicted": {**_interval(p.prediction), "share": p.share},
            **{scope: measured(p, scope) for scope in SCOPES},
        }
        for wave, p in enumerate(promises(state))
    ]


def _interval(value: Prediction | MetricValue) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}


def _by_scope(metrics: Iterable[MetricValue], prediction: Prediction) -> dict[Scope, MetricValue]:
    """The calibrated values of a prediction's relevance and metric over all queries."""
    wanted = (prediction.relevance, prediction.metric, True, None)
    return {m.scope: m for m in metrics if (m.relevance, m.metric, m.calibrated, m.group) == wanted}


def _promised_gain(plan: Plan) -> Gain | None:
    """From where to where the predicted values rise, in their own scope; of the index only up to where all is new."""
    first, last = plan.prediction[0], plan.prediction[-1]
    old, new = (_by_scope(plan.baselines.get(arm, ()), first).get(first.scope) for arm in ("old/old", "new/new"))
    end: MetricValue | Prediction | None = new
    if first.scope == "gallery":
        end = last if last.fraction == 1 else None
    return _sure_gain(first if old is None else old, end)


def _measured_gain(state: State, plan: Plan, measured: Sequence[dict[Scope, MetricValue]], scope: Scope) -> Gain | None:
    """From where to where the values of a scope rise; on the published index up to where everything is new.

    Args:
        plan: whose arms count.
    """
    first = plan.prediction[0]
    old, new = (_by_scope(plan.baselines.get(arm, ()), first).get(scope) for arm in ("old/old", "new/new"))
    if scope == "gallery":
        new = measured[-1].get(scope) if state.finished and plan.waves[-1] == 1 else None
    return _sure_gain(measured[0].get(scope) if old is None else old, new)
