"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastfill_ray.log.state import State
from fastfill_ray.report.text import version_table
from fastfill_ray.sanitize import printable


@dataclass(frozen=True)
class BackfillResult:
    """What a run left behind. ``state`` is the log's; ``seconds`` is where this run's time went, by stage.

    ``stopped`` is why the config's `stop` ended it, None if it did not; ``overrun_rows`` are then the rows of later
    waves that are embedded already: they count when the run goes on.
    """

    output: str
    state: State
    finished: bool
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    overrun_rows: int = 0

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

    def closing_words(self) -> str:
        """What was reached, what is served, and where this run's time went."""
        versions = self.state.plan_versions
        if self.stopped is not None:
            reached = f"stopped by rule after {len(versions)} versions: {self.stopped}"
            if self.overrun_rows:
                reached += f"; {self.overrun_rows:,} rows of later waves are embedded already, and count if it goes on"
        elif not self.finished:
            reached = f"stopped after {len(versions)} versions; the same command goes on"
        elif not self.seconds:
            reached = "everything was done already; nothing was embedded"
        else:
            reached = "done"
        served = "nothing is published yet" if self.serving is None else f"version {self.serving} is served"
        if self.held:
            served += f"; version {versions[-1].version} is held: {versions[-1].verdict.reason}"
        where = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return printable(f"{self.output}: {reached}; {served}.") + (f"\nSeconds by stage: {where}." if where else "")
