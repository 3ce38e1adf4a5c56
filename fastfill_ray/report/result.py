"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastfill_ray.log.state import State
from fastfill_ray.report.decision import decision
from fastfill_ray.report.plan_text import plan_text
from fastfill_ray.report.text import lead, seconds_table, version_table
from fastfill_ray.sanitize import printable
from fastfill_ray.storage.paths import REPORT_HTML


@dataclass(frozen=True)
class BackfillResult:
    """What a run left behind. ``state`` is the log's; ``seconds`` is where this run's time went, by stage.

    ``stopped`` is why the config's `stop` ended it, None if it did not; ``overrun_rows`` are then the rows of later
    waves that are embedded already: they count when the run goes on. ``item_s`` are the seconds of one actor per item,
    as measured so far; None where nothing was embedded, or nothing is left to be. ``price_per_actor_hour`` is the
    config's.
    """

    output: str
    state: State
    finished: bool
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    overrun_rows: int = 0
    item_s: float | None = None
    price_per_actor_hour: float | None = None

    @property
    def serving(self) -> int | None:
        """The version that ``open_index`` opens."""
        return self.state.serving

    @property
    def held(self) -> bool:
        """The plan's newest version was not published: it serves worse than what users have."""
        versions = self.state.plan_versions
        return bool(versions) and not versions[-1].verdict.publish and versions[-1].version not in self.state.published

    @property
    def exit_code(self) -> int:
        return 2 if self.held else 0

    def table(self) -> str:
        """One row per version."""
        return version_table(self.state)

    def plan_text(self) -> str:
        """What the plan holds: the choice and why, what is predicted of every version, what the waves cost."""
        return plan_text(self.state, self.item_s, self.price_per_actor_hour)

    def closing_words(self) -> str:
        """What was reached, what is served, and where this run's time went."""
        versions = self.state.plan_versions
        if self.stopped is not None:
            reached = f"stopped by rule after {len(versions)} versions: {self.stopped}"
            if self.overrun_rows:
                reached += f"; {self.overrun_rows:,} rows of later waves are embedded already, and count if it goes on"
        elif not versions:
            reached = "the plan is made; of its waves nothing is embedded"
        elif not self.finished:
            reached = f"stopped after {len(versions)} of {self.num_versions} versions"
        elif not self.seconds:
            reached = "everything was done already; nothing was embedded"
        else:
            reached = "done"
        served = "nothing is published yet" if self.serving is None else f"version {self.serving} is served"
        if self.held:
            served += f"; version {versions[-1].version} is held: {versions[-1].verdict.reason}"
        return "\n".join([printable(f"{self.output}: {reached}; {served}."), *seconds_table(self.seconds)])

    @property
    def num_versions(self) -> int:
        """Versions that the plan has when it is finished."""
        return 0 if self.state.plan is None else len(self.state.plan.version_waves)

    def text(self, goes_on: str) -> str:
        """All of it for people: versions, or the plan before the first one; closing words; the decision; what is next.

        Args:
            goes_on: the command that goes on where the run is not finished.
        """
        shown = self.table() if self.state.plan_versions else self.plan_text()
        parts = [shown, self.closing_words(), lead(self.state), printable(f"Report: {self.output}/{REPORT_HTML}")]
        if not self.finished:
            stops = decision(self.state).answer.action == "stop"
            parts.append(printable(f"{'To go on all the same' if stops else 'Go on'}: {goes_on}"))
        return "\n".join(filter(None, parts))
