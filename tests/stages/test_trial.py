"""The models are tried on a few rows before the gallery is read, if they have embedded nothing here yet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from fastfill_ray.backfill import _run
from fastfill_ray.config import BackfillConfig, ResourcesConfig, load_config, plan_settings
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.engine.interface import Attempt
from fastfill_ray.errors import ConfigError, EmbedderError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import Plan
from fastfill_ray.stages import trial
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Models, make_job
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.snapshot import inspect_gallery, source_of
from fastfill_ray.stages.trial import try_models
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.paths import unit_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt
from tests import synthetic

HERE = "tests.stages.test_trial"


class Fails:
    """Fails as it is told, in calls of one role."""

    def __init__(self, how: str, role: str = "item") -> None:
        self._how, self._role = how, role

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        vectors = synthetic.new_vectors(np.array(batch["x"], np.float32))
        if role != self._role:
            return vectors
        if self._how in ("away", "unknown"):
            raise (ConnectionError if self._how == "away" else KeyError)(f"text {vectors[0, 0]}")
        if self._how == "nan":
            return vectors * np.nan
        return vectors[:-1] if self._how == "short" else vectors[:1]


class Away:
    """Raises in its first calls, as a service that is away."""

    calls = 0

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        Away.calls += 1
        if Away.calls <= 6:  # two rows together, then one by one, twice
            raise ConnectionError("away")
        return synthetic.new_vectors(np.array(batch["x"], np.float32))


class Prepares:
    """The vectors of its prepared rows are off by `factor`, from row `first` of a batch on; by None, they raise; by -1,
    there are none.
    """

    def __init__(self, factor: float | None, first: int = 0) -> None:
        self._factor, self._first = factor, first

    @classmethod
    def preparer(cls, factor: float | None, first: int = 0) -> Any:
        return lambda batch, role: {"x": pa.array(batch["x"] if factor != -1 else [])}

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        Prepares.rows.append(len(batch["x"]))
        return synthetic.new_vectors(np.array(batch["x"], np.float32))

    rows: ClassVar[list[int]] = []  # of calls

    def embed_prepared(self, prepared: dict[str, pa.Array], role: str) -> Any:
        if self._factor is None:
            raise KeyError("y")
        vectors = synthetic.new_vectors(np.array(prepared["x"].to_pylist(), np.float32))
        vectors[self._first :] *= self._factor
        return vectors


class Engine(InProcessEngine):
    """Keeps what was run once. deaths: of the first processes that do so, which end."""

    def __init__(self, deaths: int = 0) -> None:
        self.called: list[Any] = []
        self._deaths = deaths

    def run_once(self, function: Callable[[Attempt], Any], resources: ResourcesConfig) -> Any:
        self.called.append(function)
        return None if len(self.called) <= self._deaths else super().run_once(function, resources)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    synthetic.write_queries(tmp_path / "queries", *synthetic.write_gallery(tmp_path / "gallery"))
    return tmp_path


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr(trial.time, "sleep", lambda seconds: waited.append(seconds) if seconds else None)
    return waited


def config_of(folder: Path, **sections: Any) -> BackfillConfig:
    return load_config(synthetic.config(folder, **{**synthetic.with_queries(folder), **sections}))


def tried(config: BackfillConfig, plan: Plan | None = None, *, deaths: int = 0) -> list[tuple[str, str]]:
    """(model, role) of what was tried."""
    store, engine = InputStore(), Engine(deaths)
    context = Context(engine, open_files(config.output), store, Progress(io.StringIO()))
    inspected = inspect_gallery(store, store.find(config.gallery.path), config.gallery, config.resources)
    models = Models(config.new_model, config.old_model)
    job = make_job(source_of(store, config, inspected), context.files, config.queries, models)
    try_models(context, job, inspected.gallery.files, config, plan)
    return [(each.model, each.role) for call in engine.called for each in call.args[1]]


def fails(how: str, role: str = "item") -> dict[str, Any]:
    return {"new_model": {"embedder": f"{HERE}:Fails", "kwargs": {"how": how, "role": role}}}


def test_a_dim_that_is_not_the_models_is_said_before_the_gallery_is_read(folder: Path) -> None:
    message = r"^new_model\.dim: the embedder returned vectors of 16 dims, new_model\.dim is 24: write dim: 16$"
    with pytest.raises(ConfigError, match=message):
        _run(config_of(folder, new_model={"dim": 24}), InProcessEngine(), stream=io.StringIO())
    assert not list((folder / "out").rglob("*.parquet"))
    assert not (folder / "out" / "log").exists()


def test_an_old_model_of_another_dim_is_said(folder: Path) -> None:
    message = r"old_model\.embedder: the embedder returned vectors of 16 dims, the gallery's old vectors have 8"
    other = {"embedder": "tests.synthetic:StubEmbedder", "kwargs": {"control": "none"}}
    with pytest.raises(ConfigError, match=message):
        tried(config_of(folder, old_model=other))


@pytest.mark.parametrize("how", ["short", "one"])
def test_an_embedder_that_does_not_return_a_vector_per_row_is_said(folder: Path, how: str) -> None:
    message = r"^new_model\.embedder '.*:Fails' returned an array of shape \(1, 16\) for 2 rows of role 'item'\. Return"
    with pytest.raises(EmbedderError, match=message):
        tried(config_of(folder, **fails(how)))


def test_what_fails_for_rows_from_all_over_is_quoted_with_its_count(folder: Path, waits: list[float]) -> None:
    with pytest.raises(EmbedderError, match=r"8 of 8 items could not be embedded: non_finite \(8 times\)") as error:
        tried(config_of(folder, **fails("nan")))
    assert "called with the columns 'x'. The embedder or the config is wrong, not single rows" in str(error.value)
    assert "quarantine" not in str(error.value)
    assert waits == [], "vectors that cannot be used are the same a moment later"


@pytest.mark.parametrize(
    ("how", "error", "waited"), [("away", "ConnectionError", [0.5, 2.0, 8.0]), ("unknown", "KeyError", [])]
)
def test_what_fails_for_queries_alone_names_their_columns(
    how: str, error: str, waited: list[float], folder: Path, waits: list[float]
) -> None:
    message = (
        rf"8 of 8 queries .*: embedder raised {error}: \S+ \S+ \(8 times\)\. .* kwargs or queries\.payload_columns\. "
        r"Or these columns hold nothing that it can embed: look into \S+/queries/\S+\.parquet\."
    )
    with pytest.raises(EmbedderError, match=message):
        tried(config_of(folder, **fails(how, "query")))
    assert waits == waited, "a key that is missing is missing a moment later"


def test_a_service_that_is_away_for_a_moment_is_waited_for(folder: Path, waits: list[float]) -> None:
    Away.calls = 0
    tried(config_of(folder, new_model={"embedder": f"{HERE}:Away", "kwargs": {}}))
    assert waits == [0.5, 2.0]


@pytest.mark.parametrize(
    ("factor", "first", "why"),
    [
        (1.1, 0, r"row 1 of 8 is .*: the two vectors are \S+ apart"),
        (1.1, 2, r"row 3 of 8 is .*: the two vectors are \S+ apart"),
        (None, 0, "row 1 of 8 is .*: embedder raised KeyError: 'y'"),
    ],
)
def test_a_preparer_that_makes_other_vectors_is_said_unless_it_is_not_used(
    folder: Path, factor: float | None, first: int, why: str, waits: list[float]
) -> None:
    model = {"embedder": f"{HERE}:Prepares", "kwargs": {"factor": factor, "first": first}}
    with pytest.raises(EmbedderError, match=rf"^new_model\.embedder '.*:Prepares': {why}.* Mend preparer"):
        tried(config_of(folder, new_model=model))
    assert tried(config_of(folder, new_model=model, resources={"prepare_workers": 0}))
    assert tried(config_of(folder, new_model={**model, "kwargs": {"factor": 1.0}}))


def test_rows_are_embedded_once_as_they_are_and_more_of_them_where_there_is_a_preparer(folder: Path) -> None:
    for workers, rows in (("auto", 8), (0, 2)):
        Prepares.rows.clear()
        model = {"embedder": f"{HERE}:Prepares", "kwargs": {"factor": 1.0}}
        tried(config_of(folder, new_model=model, resources={"prepare_workers": workers}))
        assert Prepares.rows == [rows, rows], "items, then queries"


def test_a_preparer_that_prepares_nothing_is_refused_with_its_reason(folder: Path) -> None:
    model = {"embedder": f"{HERE}:Prepares", "kwargs": {"factor": -1.0}}
    message = (
        r"^new_model\.embedder '.*:Prepares': its `preparer` prepares none of \d rows.*: it returned 0 rows for \d\. "
    )
    with pytest.raises(EmbedderError, match=message):
        tried(config_of(folder, new_model=model))
    assert tried(config_of(folder, new_model=model, resources={"prepare_workers": 0}))


def test_a_preparer_that_ends_its_own_process_as_well_as_the_models_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(folder, new_model={"embedder": f"{HERE}:Prepares", "kwargs": {"factor": 1.0}})
    message = (
        r"^the `preparer` of new_model\.embedder '.*:Prepares' or old_model\.embedder '.*' ended each process .*Mend"
    )
    with pytest.raises(EmbedderError, match=message):
        tried(config, deaths=2)
    assert len(tried(config, deaths=1)) == 2 * 3, "preparers alone came through"
    assert "was ended; the run goes on" in caplog.text
    caplog.clear()
    config = config_of(folder, resources={"prepare_workers": 0})
    assert len(tried(config, deaths=1)) == 3, "there is nothing else that may have done it"
    assert "was ended; the run goes on" in caplog.text


def test_bad_rows_at_the_beginning_are_not_held_against_the_model(folder: Path, waits: list[float]) -> None:
    x = synthetic.latent(600)[0]
    bad = {synthetic.marker(row[0]): how for row, how in zip(x[:2], ["raise", "nan"], strict=True)}
    (folder / "control.json").write_text(json.dumps({"bad": bad}))
    assert tried(config_of(folder)) == [("new", "item"), ("new", "query"), ("old", "query")]


def test_a_model_that_cannot_be_built_is_named_by_its_section(folder: Path) -> None:
    with pytest.raises(EmbedderError, match=r"^old_model: embedder '.*:Embeder': .* no attribute"):
        tried(config_of(folder, old_model={"embedder": "tests.synthetic:Embeder"}))


def test_only_what_is_new_since_the_last_plan_is_tried(folder: Path) -> None:
    config = config_of(folder)
    plan = Plan.model_construct(settings=plan_settings(config))
    assert tried(config, plan) == []
    assert tried(config_of(folder, waves=[0.5, 1.0]), plan) == []
    given = {**synthetic.with_queries(folder)["queries"], "old_vector_column": "x"}
    assert tried(config_of(folder, queries=given), plan) == [("new", "query")]
    assert tried(config_of(folder, old_model={"embedder": None}), plan) == [("new", "query")]
    other = {"gallery": {"payload_columns": ["x", "group"]}}
    assert tried(config_of(folder, **other), plan) == [("new", "item")]


def test_a_start_that_goes_on_with_its_pairs_tries_nothing(folder: Path) -> None:
    config = config_of(folder)
    files, space = open_files(config.output), Models(config.new_model, config.old_model).fingerprints()["new"]
    for name, of in (("0" * 16, "another"), ("1" * 16, space)):
        assert tried(config) != []
        receipt = Receipt(unit=f"c{name}", rows=1, details={"space": of})
        put_receipt(files, unit_receipt(f"pairs/{name}", receipt.unit), receipt)
    assert tried(config) == []
