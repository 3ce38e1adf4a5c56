"""What is left of a plan: how much, what it is predicted to bring to the objective, and for how much work.

Only differences of predicted values count here: the level of a prediction may be off where its course is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastfill_ray.experiment.items import LEAST_ASKING
from fastfill_ray.log.records import MetricValue, Plan
from fastfill_ray.log.state import State
from fastfill_ray.log.stop import work_ahead_s
from fastfill_ray.report.findings import held_against
from fastfill_ray.report.model import metric_value
from fastfill_ray.report.wording import change, metric_name, percent, score, score_interval
from fastfill_ray.types import Scope
from fastfill_ray.wording import duration

# What is left is not worth its price where it is predicted to bring less than this share of the whole gain.
LITTLE = 0.05


@dataclass(frozen=True)
class Outlook:
    """By how much the objective is predicted to change from the newest version on.

    next: until the next version. best: until the best one that is left. wave: that one stands after it; None for the
    last. whole: gain of the backfill from old/old on, or from version 0 where that is not known; None where there is
    none. step: how the newest version was predicted to differ from the one that it was held against; None where that
    is not known, or where the prediction is not of the objective.
    """

    next: float
    best: float
    wave: int | None
    whole: float | None
    step: float | None

    @property
    def share(self) -> float | None:
        """Of the whole gain that `best` is."""
        return None if self.whole is None else self.best / self.whole

    @property
    def is_little(self) -> bool:
        """Whether what is left is not worth its price."""
        return self.best <= 0 or (self.share is not None and self.share < LITTLE)

    def is_beaten_by(self, low: float | None) -> bool:
        """Whether the newest step brought at least `low`, and so clearly more than predicted that the rest may, too."""
        if low is None or self.step is None or self.whole is None:
            return False
        return low - max(self.step, 0.0) > LITTLE * self.whole


@dataclass(frozen=True)
class Rest:
    """What is left of a plan: waves after the newest version, and rows to embed in them.

    metric: what is predicted. outlook: None where nothing is. seconds: of work until the best version; None before any
    was measured.
    """

    metric: str
    waves: int
    rows: int
    outlook: Outlook | None = None
    seconds: float | None = None

    @property
    def for_work(self) -> str:
        return "" if self.seconds is None else f", for about {duration(self.seconds)} of work"

    def in_brief(self, outlook: Outlook) -> str:
        """A clause: what it brings, and for how much work."""
        if self.waves == 1:
            which = "the last wave is"
        elif outlook.wave is None:
            which = f"the {self.waves} waves that are left are"
        elif outlook.next == outlook.best:
            which = "the next wave is"
        else:
            which = f"the waves up to wave {outlook.wave} are"
        alone = "" if outlook.next == outlook.best else f", the next one {change(outlook.next)}"
        return f"{which} predicted to bring {change(outlook.best)} of {self.metric}{alone}{self.for_work}"

    def in_full(self) -> str:
        """Sentences: how much is left, and what it is predicted to bring."""
        left = f"{self.rows:,} items in {'1 wave' if self.waves == 1 else f'{self.waves} waves'}"
        if (outlook := self.outlook) is None:
            return f"{left}{self.for_work}."
        until = "" if outlook.wave is None or self.waves == 1 else f" by wave {outlook.wave}"
        has_share = outlook.share is not None and 0 < outlook.share <= 1
        share = f", {percent(outlook.share or 0.0)} of the whole gain" if has_share else ""
        brings = f"{change(outlook.best)} of {self.metric}{until}"
        return f"{left}. Predicted: {brings}{share}{self.for_work}."


def rest_of(state: State, plan: Plan) -> Rest | None:
    """None where nothing is left to embed. `plan`: the state's last one."""
    made, order = state.plan_versions, state.order_versions
    newest = order[-1].wave if order else 0  # version 0 embeds nothing: it is of the pairs, wave 0
    ahead = [wave for wave in plan.version_waves[len(made) :] if wave > newest]
    if state.finished or not ahead:
        return None
    rest = Rest(predicted_name(plan), len(ahead), sum(plan.wave_rows[newest + 1 : ahead[-1] + 1]))
    if not order:
        return rest
    against = held_against(state, order[-1])
    outlook = _outlook(plan, newest, ahead, next((v.wave for v in order if v.version == against), None))
    until = ahead[-1] if outlook is None or outlook.wave is None else outlook.wave
    is_measured = any(version.embed_seconds for version in made)
    return replace(rest, outlook=outlook, seconds=work_ahead_s(plan, made, until) if is_measured else None)


def _outlook(plan: Plan, newest: int, ahead: Sequence[int], step_from: int | None) -> Outlook | None:
    """From the version after wave `newest` on, over those after the waves `ahead`.

    Args:
        step_from: the wave of the version that the newest one was held against; None for old/old.
    """
    promised = [prediction.value for prediction in plan.prediction]
    if max(*ahead, newest) >= len(promised):
        return None
    now = promised[newest]
    changes = {wave: promised[wave] - now for wave in ahead}
    best = max(ahead, key=lambda wave: (changes[wave], wave))
    old = arm_of_prediction(plan, "old/old")
    whole = max(promised) - (promised[0] if old is None else old.value)
    return Outlook(
        next=changes[ahead[0]],
        best=changes[best],
        wave=None if best == ahead[-1] else best,
        whole=whole if whole > 0 else None,
        step=now - promised[step_from] if step_from is not None and predicts_objective(plan) else None,
    )


def objective_name(plan: Plan) -> str:
    return metric_name(plan.objective.partition("/")[2])


def predicts_objective(plan: Plan) -> bool:
    """Whether the prediction is of the objective; it is not where too few audit queries have an answer by that."""
    return predicted_objective(plan) == plan.objective


def predicted_name(plan: Plan) -> str:
    """The metric that is predicted, with its relevance where that is not the objective's."""
    relevance, _, metric = predicted_objective(plan).partition("/")
    return metric_name(metric) if predicts_objective(plan) else f"{metric_name(metric)} by {relevance}"


def asked(plan: Plan) -> int | None:
    """Queries that the prediction is a mean over; None where that is not known."""
    return plan.prediction[0].queries if plan.prediction else None


def few_asked(plan: Plan) -> str:
    """That so few queries tell next to nothing, as a clause; "" where they are enough, or not known."""
    queries = asked(plan)
    if queries is None or queries >= LEAST_ASKING:
        return ""
    are = "query is held out that has" if queries == 1 else "queries are held out that have"
    return f"only {queries} {are} an answer, and at least {LEAST_ASKING} are needed to tell anything"


def predicted_scope(plan: Plan) -> Scope:
    """Where the prediction is to be measured; the audit items where nothing is predicted."""
    return plan.prediction[0].scope if plan.prediction else "audit"


def arm_of_prediction(plan: Plan, arm: str) -> MetricValue | None:
    """What is predicted, of an arm, on the scale of the prediction."""
    relevance, _, metric = predicted_objective(plan).partition("/")
    return metric_value(plan.baselines.get(arm, ()), relevance, metric, predicted_scope(plan))


def prior_words(state: State) -> str:
    """What ranking higher what users took often would bring without a backfill, on the audit items; "" where it is not
    known, and where it brings nothing to any system.
    """
    plan = state.plan
    if plan is None:
        return ""
    relevance, _, metric = plan.objective.partition("/")

    def on_audit(values: Sequence[MetricValue]) -> MetricValue | None:
        return metric_value(values, relevance, metric, "audit")

    said = []
    for arm, name in (
        ("old/old", "the old system"),
        ("query map", "the old index with mapped queries"),
        ("new/new", "the full new model"),
    ):
        plain, prior = (on_audit(plan.baselines.get(each, ())) for each in (arm, f"{arm} + prior"))
        if plain is not None and prior is not None and prior.value > plain.value:
            said.append(f"of {name} from {score(plain.value)} to {score(prior.value)}")
    if not said:
        return ""
    words = (
        "Ranking higher what users took often, and nothing else, can be tried before a backfill: it brings "
        f"{metric_name(metric)} {' and '.join(said)}. These figures are of the audit items, a smaller gallery: compare "
        "them with each other alone"
    )
    # Only of this plan: another one's queries may be others.
    served = next((version for version in state.plan_versions if version.version == state.serving), None)
    here = None if served is None else on_audit(served.metrics)
    if served is not None and here is not None:
        words += f"; version {served.version}, which is served, has {score(here.value)} there"
    return f"{words}."


def query_map_words(plan: Plan) -> str:
    """What the old index gives when it is asked with mapped queries, without a backfill; "" where that is not known."""
    value = arm_of_prediction(plan, "query map")
    if value is None:
        return ""
    return (
        f"The old index as it is, asked with mapped queries and without any backfill, has {predicted_name(plan)} "
        f"{score_interval(value.value, value.low, value.high)}."
    )


def peak_words(plan: Plan) -> str:
    """That the curve is predicted to peak before its end, and what to do; "" where it is not, by the intervals.

    What is new first stands out among stale items, so that an order by what users took is a prior, too.
    """
    if len(plan.prediction) < 2:
        return ""
    best, last = max(plan.prediction, key=lambda each: each.value), plan.prediction[-1]
    if best.low <= last.value or best.value <= last.high:
        return ""
    wave = plan.prediction.index(best)
    ends = "version 0 (`--until version0`)" if wave == 0 else f"wave {wave} (`--until wave:{wave}`)"
    return (
        f"{predicted_name(plan)} is predicted to peak at {percent(best.fraction)} new, {score(best.value)}, and to end "
        f"at {score(last.value)}: stop after {ends}. What is new first stands out among what is stale, and that was "
        "chosen by what users want; the gate will hold later versions that are surely worse."
    )


def predicted_objective(plan: Plan) -> str:
    """In the form of an objective; the objective itself where nothing is predicted."""
    first = next(iter(plan.prediction), None)
    return plan.objective if first is None else f"{first.relevance}/{first.metric}"
