"""The run, top to bottom: ``next_step(state)`` decides, ``run_backfill()`` acts and appends.

    config -> snapshot -> pairs -> train -> score -> choose -> PLAN -> version 0 -> wave 1 -> ... -> wave W (or stop)

Resuming is calling it again: what is done is known from the log and the receipts, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.errors import ConfigError, InputChanged, InputError, PlanMismatch, SpaceMismatch
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import check_pin
from fastfill_ray.log.next_step import Step, next_step
from fastfill_ray.log.records import Init, Plan, Publish
from fastfill_ray.log.state import State
from fastfill_ray.log.stop import decide
from fastfill_ray.report.text import version_table
from fastfill_ray.report.write import write_report
from fastfill_ray.stages.prepare import Prepared, check_request, old_space_of, prepare, spaces_of
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.runtime import connected
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery, take_snapshot
from fastfill_ray.stages.version import VersionMaker, make_plan
from fastfill_ray.stages.waves import Waves, overrun_rows
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import Files, open_files, probe
from fastfill_ray.storage.paths import snapshot_path
from fastfill_ray.types import fingerprint

# Settings that may change between runs of one plan: the run resumes.
_OUTSIDE_THE_PLAN: Any = {
    "resources": True,
    "quarantine": True,
    "storage": True,
    "output": True,
    "new_model": {"batch_size"},
    "serving": {"max_regression"},
    "stop": True,
}


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
        return f"{self.output}: {reached}; {served}." + (f"\nSeconds by stage: {where}." if where else "")


def run_backfill(
    config: BackfillConfig | Mapping[str, Any] | str | Path,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    stream: TextIO | None = None,
) -> BackfillResult:
    """Run a backfill, or resume it: the same call does what is not done yet.

    Uses the process's Ray if it is initialised, else what ``ray.init()`` finds or starts.

    Args:
        config: a YAML file's path, a mapping, or a ready config.
        overrides: ``a.b=c`` strings on top of it.
        until: "plan", "version0" or "wave:K": stop after it, resumable.
        stream: where progress goes; stderr by default.

    Raises:
        FastfillError: see ``fastfill_ray.errors``; nothing that was written before is harmed by any of them.
    """
    config = load_config(config, overrides)
    last_wave = parse_until(until, config)
    progress = Progress(stream)
    files = open_files(config.output, s3_endpoint=config.storage.s3_endpoint)
    settings = plan_settings(config)
    request = fingerprint([plan_settings(config, exclude_defaults=True), input_pins(config)])
    log = Log(files)
    state = log.read()
    step = _step(files, state, settings, request, last_wave, config)
    if step.do == "publish":
        log.claim()
        state = log.append(Publish(version=state.plan_versions[-1].version))
        write_report(files, state)
        step = _step(files, state, settings, request, last_wave, config)
    if step.do == "stop":
        if state.plan is not None:
            write_report(files, state)
        return _result(config, files, state, progress)
    store = InputStore(config.storage.s3_endpoint)
    with progress.timed("inspect"):
        inspected = inspect_gallery(store, config.gallery, config.resources)
        check_request(config, inspected)
    with connected():
        probe(files)
        snapshot = take_snapshot(files, store, inspected, config.gallery, progress)
        wanted = _init(config, snapshot)
        _check_bound(config, state.init, wanted)
        if state.plan is not None and step.do == "plan":
            progress.say(f"a new plan, {snapshot.rows:,} items: {_difference(settings, state.plan)}")
        ready = prepare(config, files, snapshot, progress)
        # Only now is anything bound: a model that cannot be built, or returns another dim, leaves the root as it was.
        _check_bound(config, log.initialise(wanted).init, wanted)
        epoch = log.claim()
        step = _step(files, log.state, settings, request, last_wave, config)
        if step.do == "plan":
            log.append(make_plan(config, files, ready, log.state, request, settings, progress))
        _make_versions(log, config, files, ready, epoch, request, last_wave, progress)
    return _result(config, files, log.state, progress)


def _make_versions(
    log: Log,
    config: BackfillConfig,
    files: Files,
    ready: Prepared,
    epoch: int,
    request: str,
    last_wave: int | None,
    progress: Progress,
) -> None:
    """Version 0, then the waves as one streaming execution: version k is built while the pool embeds wave k + 1."""
    plan = log.state.plan
    assert plan is not None
    maker = VersionMaker(config, files, ready, plan, epoch, progress)
    waves: Waves | None = None
    try:
        while (step := next_step(log.state, request, last_wave=last_wave, rule=config.stop)).do != "stop":
            if step.do == "version":
                if step.wave > 0 and waves is None:
                    last = len(plan.waves) if last_wave is None else last_wave
                    units = {wave: maker.units(wave) for wave in range(step.wave, last + 1)}
                    waves = Waves(config, files, ready, plan, units, progress)
                receipts = ready.pair_receipts if step.wave == 0 or waves is None else waves.receipts(step.wave)
                version = maker.make(log.state, step.wave, receipts)
                decision = decide(plan, (*log.state.plan_versions, version), config.stop)
                log.append(version.model_copy(update={"stopped": decision.why if decision.stop else None}))
                verdict = "published" if version.verdict.publish else "held"
                progress.say(
                    f"version {version.version}: {version.fraction:.1%} new, {verdict}: "
                    f"{plan.objective} {version.verdict.reason}" + (f"; {decision.why}" if decision.why else "")
                )
            else:
                log.append(Publish(version=log.state.plan_versions[-1].version))
            write_report(files, log.state)
        if waves is not None:
            waves.drain()
    finally:
        if waves is not None:
            waves.close()


def _step(
    files: Files, state: State, settings: dict[str, Any], request: str, last_wave: int | None, config: BackfillConfig
) -> Step:
    """``next_step``, with a mismatch explained by what differs."""
    try:
        return next_step(state, request, last_wave=last_wave, rule=config.stop)
    except PlanMismatch as error:
        plan = state.plan
        assert plan is not None
        if settings != plan.settings:
            raise PlanMismatch(
                f"{config.output}: {error}: {_difference(settings, plan)}. "
                "Put it back to finish the plan, or choose another output."
            ) from None
        snapshot = Snapshot.model_validate_json(files.get(snapshot_path(plan.snapshot)))
        for file in snapshot.gallery.files:
            check_pin(InputStore(config.storage.s3_endpoint), file)
        raise InputChanged(
            f"{config.output}: {error}: files were added to {config.gallery.path}, or the queries, qrels or classifier "
            "changed. Restore what was planned, or choose another output."
        ) from None


def _difference(settings: Mapping[str, Any], plan: Plan) -> str:
    """What differs from the settings of a plan, key by key."""
    now, then = _leaves(settings), _leaves(plan.settings)
    changed = [
        f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in {**then, **now} if then.get(key) != now.get(key)
    ]
    return "; ".join(changed) or "input files were added or changed"


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def plan_settings(config: BackfillConfig, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """The part of the config that a plan is bound to; models' kwargs, which may hold credentials, as a fingerprint.

    Without the defaults it identifies a request: a later release that adds a key then still knows an older plan.
    """
    settings = config.model_dump(mode="json", exclude=_OUTSIDE_THE_PLAN, exclude_defaults=exclude_defaults)
    for model in ("new_model", "old_model"):
        if "kwargs" in settings.get(model, {}):
            settings[model]["kwargs"] = fingerprint(settings[model]["kwargs"])
    return settings


def input_pins(config: BackfillConfig) -> list[list[Any]]:
    """Path, size and tag of every input file, from listings only."""
    paths = {"gallery.path": config.gallery.path, "new_model.classifier": config.new_model.classifier}
    if config.queries is not None:
        paths |= {"queries.path": config.queries.path, "queries.qrels_path": config.queries.qrels_path}
    store = InputStore(config.storage.s3_endpoint)
    pins: list[list[Any]] = []
    for key, path in paths.items():
        try:
            found = store.find(path) if path is not None else []
        except InputError as error:
            raise ConfigError(f"{key}: {error}") from error
        pins += [[file.path, file.size, file.tag] for file in found]
    return pins


def parse_until(until: str | None, config: BackfillConfig) -> int | None:
    """The last wave to make: -1 for "plan", 0 for "version0", K for "wave:K", None for all."""
    if until is None:
        return None
    if until in {"plan", "version0"}:
        return -1 if until == "plan" else 0
    match = re.fullmatch(r"wave:(\d+)", until)
    if match is None or not 1 <= int(match[1]) <= len(config.waves):
        raise ConfigError(f"--until {until}: plan, version0 or wave:K with K from 1 to {len(config.waves)} is expected")
    return int(match[1])


def _init(config: BackfillConfig, snapshot: Snapshot) -> Init:
    return Init(
        id_type=snapshot.id_type,
        metric=config.new_model.metric,
        old_dim=snapshot.old_dim,
        new_dim=config.new_model.dim,
        old_space=old_space_of(config, snapshot),
        new_space=spaces_of(config)["new"],
    )


def _check_bound(config: BackfillConfig, found: Init | None, wanted: Init) -> None:
    """Refuse a root that is bound to other spaces."""
    if found is not None and found != wanted:
        have, want = found.model_dump(), wanted.model_dump()
        told = "; ".join(
            f"{key} is {have[key]!r}, this run has {want[key]!r}" for key in want if have[key] != want[key]
        )
        raise SpaceMismatch(
            f"{config.output} is bound to other spaces: {told} (new_space: the embedder, its kwargs or dim; old_space: "
            "the old vectors' column or dim). Choose another output."
        )


def _result(config: BackfillConfig, files: Files, state: State, progress: Progress) -> BackfillResult:
    plan, versions = state.plan, state.plan_versions
    stopped, overrun = None, 0
    if plan is not None and (decision := decide(plan, versions, config.stop)).stop:
        stopped, overrun = decision.why, overrun_rows(files, plan, versions[-1].wave)
    return BackfillResult(config.output, state, state.finished, dict(progress.seconds), stopped, overrun)
