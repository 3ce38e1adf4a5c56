"""Faults of a config: one clear error each, before anything starts, with the key, the value and what is allowed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fastfill_ray.config import BackfillConfig, QuarantineConfig, load_config, plan_settings
from fastfill_ray.errors import ConfigError

VALUES: dict[str, Any] = {
    "gallery": {"path": "s3://bucket/items", "payload_columns": ["text"], "label_column": "topic"},
    "new_model": {"embedder": "my_pkg.models:Embedder", "kwargs": {"device": "cpu"}, "dim": 384},
    "waves": [0.1, 0.5, 1.0],
    "output": "s3://bucket/run",
}


def values(**sections: Any) -> dict[str, Any]:
    """A good config with `sections` merged in, one level deep; None in a section removes the key."""
    merged = copy.deepcopy(VALUES)
    for name, section in sections.items():
        if isinstance(section, dict) and isinstance(merged.get(name), dict):
            both = {**merged[name], **section}
            merged[name] = {key: value for key, value in both.items() if value is not None}
        else:
            merged[name] = section
    return merged


def test_yaml_a_dict_and_keywords_give_one_config(tmp_path: Path) -> None:
    path = tmp_path / "backfill.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    config = BackfillConfig(**VALUES)
    for source in (VALUES, path, str(path), config):
        assert load_config(source) == config
    assert config.waves == (0.1, 0.5, 1.0)
    assert config.gallery.payload_columns == ("text",)


@pytest.mark.parametrize("part", ["gallery", "new_model", "pairs", "resources", "storage"])
def test_a_config_cannot_be_changed_afterwards(part: str) -> None:
    config = load_config(VALUES)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    section = getattr(config, part)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section, next(iter(type(section).model_fields)), None)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        # Unknown keys: where they are, and what is allowed there.
        ({"gallry": {}}, ["gallry: unknown key", "allowed here: gallery, queries, new_model"]),
        (
            {"gallery": {"id": "x"}},
            ["gallery.id: unknown key (did you mean gallery.id_column?)", "allowed here: path, id_column"],
        ),
        ({"gallery": {"id_colum": "x"}}, ["gallery.id_colum: unknown key (did you mean gallery.id_column?)"]),
        ({"id_column": "x"}, ["id_column: unknown key (did you mean gallery.id_column or queries.id_column?)"]),
        ({"pairs": {"waves": [1.0]}}, ["pairs.waves: unknown key (did you mean waves?)"]),
        ({"seed": 1, "zzz": 1}, ["zzz: unknown key; allowed here"]),
        (
            {"queries": {"path": "q", "payload_columns": ["t"], "qrels": "x"}},
            ["queries.qrels: unknown key", "qrels_path"],
        ),
        ({"resources": {"gpus": 1}}, ["resources.gpus: unknown key", "gpus_per_actor"]),
        # Missing keys.
        ({"new_model": {"dim": None}}, ["new_model.dim: missing"]),
        ({"gallery": {"payload_columns": None}}, ["gallery.payload_columns: missing"]),
        # Wrong types and values.
        ({"gallery": {"payload_columns": "text"}}, ["gallery.payload_columns: found 'text'", "a list is expected"]),
        ({"gallery": {"payload_columns": []}}, ["gallery.payload_columns: found []", "at least 1"]),
        ({"gallery": []}, ["gallery: found []", "dictionary"]),
        ({"gallery": {"path": []}}, ["gallery.path: a path or a list of paths is expected, such as [a.parquet, b"]),
        ({"gallery": {"path": 7}}, ["gallery.path: a path or a list of paths is expected"]),
        ({"gallery": {"path": ["a", 7]}}, ["gallery.path: a path or a list of paths is expected"]),
        ({"gallery": {"path": ["/x/a", "/b", "/x/./a"]}}, ["gallery.path: /x/a is in the list twice; give it once"]),
        ({"storage": {"anonymous": "yes"}}, ["storage.anonymous: found 'yes'", "valid boolean"]),
        ({"storage": {"anonymous": 1}}, ["storage.anonymous: found 1", "valid boolean"]),
        ({"storage": {"s3_endpoint": True}}, ["s3_endpoint is True; it does not take true or false"]),
        ({"gallery": {"vector_dtype": "f2"}}, ["gallery.vector_dtype: found 'f2'", "'float16', 'float32'"]),
        ({"new_model": {"dim": "wide"}}, ["new_model.dim: found 'wide'", "integer"]),
        ({"new_model": {"dim": 0}}, ["new_model.dim: found 0", "greater than 0"]),
        ({"new_model": {"metric": "dot"}}, ["new_model.metric: found 'dot'", "'cosine', 'ip' or 'l2'"]),
        ({"new_model": {"embedder": "my_pkg.Embedder"}}, ["new_model.embedder: found 'my_pkg.Embedder'", "pattern"]),
        ({"new_model": {"embedder": "m:a b"}}, ["new_model.embedder: found 'm:a b'"]),
        ({"old_model": {"embedder": "os"}}, ["old_model.embedder: found 'os'"]),
        ({"pairs": {"count": 2.5}}, ["pairs.count: found 2.5", "integer", "or auto"]),
        ({"pairs": {"count": "many"}}, ["pairs.count: found 'many'", "integer", "or auto"]),
        ({"pairs": {"count": 0}}, ["pairs.count: found 0", "greater than 0"]),
        ({"pairs": {"split": [0.5, 0.5]}}, ["pairs.split.2: missing"]),
        ({"pairs": {"split": [0.5, 0.5, 0.5]}}, ["pairs.split is [0.5, 0.5, 0.5]", "sum to 1"]),
        ({"pairs": {"split": [1.2, -0.1, -0.1]}}, ["pairs.split is [1.2, -0.1, -0.1]", "above 0"]),
        ({"pairs": {"split": [float("nan"), 0.5, 0.5]}}, ["pairs.split.0: found nan", "finite"]),
        ({"resources": {"embed_actors": [4, 2]}}, ["resources.embed_actors is [4, 2]", "1 <= min <= max"]),
        ({"resources": {"embed_actors": [0, 2]}}, ["resources.embed_actors is [0, 2]"]),
        ({"resources": {"cpus_per_actor": float("inf")}}, ["resources.cpus_per_actor: found inf", "finite"]),
        ({"resources": {"prepare_workers": -1}}, ["resources.prepare_workers: found -1", "greater than or equal to 0"]),
        ({"resources": {"prepare_workers": "all"}}, ["resources.prepare_workers: found 'all'", "or auto"]),
        ({"resources": {"price_per_actor_hour": 0}}, ["resources.price_per_actor_hour: found 0", "greater than 0"]),
        ({"quarantine": {"max_fraction": 1.5}}, ["quarantine.max_fraction: found 1.5", "less than or equal to 1"]),
        ({"stop": {"target_gain": 1.5}}, ["stop.target_gain: found 1.5", "less than or equal to 1"]),
        ({"stop": {"target_gain": 0}}, ["stop.target_gain: found 0", "greater than 0"]),
        ({"stop": {"budget_hours": 0}}, ["stop.budget_hours: found 0", "greater than 0"]),
        ({"stop": {"budget": 3}}, ["stop.budget: unknown key", "allowed here: target_gain, budget_hours"]),
        ({"serving": {"max_regression": -0.1}}, ["serving.max_regression: found -0.1"]),
        ({"alignment": {"method": "magic"}}, ["alignment.method: found 'magic'", "'procrustes' or 'ridge'"]),
        ({"objective": {"metric": "auc"}}, ["objective.metric: found 'auc'", "'map'"]),
        ({"seed": -1}, ["seed: found -1"]),
        ({"seed": 2**70}, [f"seed: found {2**70}", "less than"]),
        ({"output": ""}, ["output: found ''"]),
        # Waves.
        ({"waves": []}, ["waves: found []", "at least 1"]),
        ({"waves": 0.5}, ["waves: found 0.5", "a list is expected, such as [a, b], or auto"]),
        ({"waves": [0.0, 1.0]}, ["waves is [0.0, 1.0]", "above 0 and at most 1"]),
        ({"waves": [0.5, 1.1]}, ["waves is [0.5, 1.1]", "at most 1"]),
        ({"waves": [0.5, 0.2, 1.0]}, ["waves is [0.5, 0.2, 1.0]", "strictly increasing"]),
        ({"waves": [0.5, 0.5]}, ["waves is [0.5, 0.5]", "strictly increasing"]),
        ({"waves": ["half"]}, ["waves.0: found 'half'", "number"]),
        ({"waves": [float("nan")]}, ["waves.0: found nan", "finite"]),
        # Parts that do not fit together.
        # A policy's column beside what says otherwise.
        (
            {"policy": {"column": "prio", "name": "random"}},
            ["policy.column is 'prio', which says that policy.name is 'column', but policy.name is 'random'. Leave"],
        ),
        ({"policy": {"column": "prio", "name": "auto"}}, ["policy.column is 'prio'", "policy.name is 'auto'"]),
        (
            {"policy": {"column": "prio"}, "gallery": {"priority_column": "id"}},
            ["policy.column is 'prio', which says that gallery.priority_column is 'prio'", "but", "is 'id'. Leave one"],
        ),
        (
            {"gallery": {"label_column": None}, "objective": {"relevance": "label"}},
            ["objective.relevance is 'label' but gallery.label_column is not set"],
        ),
        (
            {"queries": {"path": "q", "payload_columns": ["t"]}, "objective": {"relevance": "label"}},
            ["objective.relevance is 'label' but queries.label_column is not set"],
        ),
        ({"objective": {"relevance": "qrels"}}, ["objective.relevance is 'qrels' but queries.qrels_path is not set"]),
        (
            {
                "gallery": {"label_column": None},
                "objective": {"relevance": "new_model"},
                "policy": {"name": "class_margin"},
            },
            ["policy.name is 'class_margin' but gallery.label_column is not set"],
        ),
        ({"serving": {"stale_mode": "both"}}, ["serving.stale_mode: found 'both'", "'auto', 'aligned' or 'fused'"]),
        (
            {
                "queries": {"path": "q", "payload_columns": ["t"], "label_column": "topic"},
                "serving": {"stale_mode": "fused"},
            },
            ["serving.stale_mode is 'fused' but neither old_model.embedder nor queries.old_vector_column is set"],
        ),
        (
            {
                "gallery": {"label_column": None},
                "objective": {"relevance": "new_model"},
                "new_model": {"classifier": "c.npz"},
            },
            ["new_model.classifier is set but gallery.label_column is not"],
        ),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_with_its_key_the_value_and_what_is_allowed(
    wrong: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(values(**wrong))
    message = str(caught.value)
    assert message.startswith("config: ")
    assert ";;" not in message
    for part in told:
        assert part in message


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"new_model\.dim: found 0.*pairs\.size: unknown key.*waves\.0"):
        load_config(values(new_model={"dim": 0}, pairs={"size": 3}, waves=["x"]))


def test_a_value_of_a_good_key_is_not_told_when_another_is_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(values(new_model={"dim": None, "kwargs": {"token": "s3cret"}}))
    assert "s3cret" not in str(caught.value)


def test_fused_is_accepted_where_queries_have_old_vectors() -> None:
    queries = {"path": "q", "payload_columns": ["t"], "label_column": "topic"}
    fused = {"serving": {"stale_mode": "fused"}}
    for sections in (
        {},  # the audit items are the queries
        {"queries": queries, "old_model": {"embedder": "my_pkg.models:Old"}},
        {"queries": {**queries, "old_vector_column": "old"}},
    ):
        assert load_config(values(**sections, **fused)).serving.stale_mode == "fused"


def test_the_shortest_config_needs_no_guess() -> None:
    shortest = {
        "gallery": {"path": "items", "payload_columns": ["text"]},
        "new_model": {"embedder": "my_pkg.models:Embedder", "dim": 384},
        "output": "run",
    }
    config = load_config(shortest)
    assert (config.pairs.count, config.waves) == ("auto", "auto")
    assert (config.objective.relevance, config.objective.metric) == ("new_model", "recall@10")
    assert plan_settings(config)["pairs"]["count"] == plan_settings(config)["waves"] == "auto"
    assert load_config(config) == config
    assert load_config(shortest, ["pairs.count=500", "waves=[0.5, 1]"]).waves == (0.5, 1.0)


@pytest.mark.parametrize(
    ("sections", "objective", "chosen"),
    [
        ({}, {}, ("label", "map")),
        ({}, {"metric": "mrr"}, ("label", "mrr")),
        ({"gallery": {"label_column": None}}, {}, ("new_model", "recall@10")),
        ({"gallery": {"label_column": None}}, {"relevance": "auto", "metric": "mrr"}, ("new_model", "mrr")),
        ({"queries": {"label_column": "l", "qrels_path": "r"}}, {}, ("label", "map")),
        ({"queries": {"qrels_path": "r"}}, {}, ("qrels", "map")),
        ({"queries": {}}, {"relevance": "auto"}, ("new_model", "recall@10")),
        # What is given stays what it always was.
        ({"queries": {"qrels_path": "r"}}, {"relevance": "new_model"}, ("new_model", "map")),
        ({"queries": {"qrels_path": "r"}}, {"relevance": "qrels", "metric": "mrr"}, ("qrels", "mrr")),
    ],
)
def test_the_objective_is_the_best_that_the_columns_allow(
    sections: dict[str, Any], objective: dict[str, str], chosen: tuple[str, str]
) -> None:
    if "queries" in sections:
        sections = {**sections, "queries": {"path": "q", "payload_columns": ["t"], **sections["queries"]}}
    config = load_config(values(**sections, objective=objective))
    assert (config.objective.relevance, config.objective.metric) == chosen


def test_a_plan_of_an_older_release_knows_its_request_again() -> None:
    """Its name is without what was a default then: 20,000 pairs, the whole ladder, mAP by label."""
    without = {key: value for key, value in VALUES.items() if key != "waves"}
    settings = plan_settings(load_config(without), exclude_defaults=True)
    assert set(settings) == {"gallery", "new_model"}


@pytest.mark.parametrize("relevance", ["label", "qrels", "new_model"])
def test_a_relevance_is_accepted_where_its_columns_are_given(relevance: str) -> None:
    queries = {"path": "q", "payload_columns": ["t"], "label_column": "topic", "qrels_path": "r"}
    assert load_config(values(queries=queries, objective={"relevance": relevance})).objective.relevance == relevance


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"- a\n- b\n", "holds list; a mapping of sections is expected"),
        (b"", "holds NoneType; a mapping of sections is expected"),
        (b"gallery: {path: [}", "not YAML"),
        (b"seed: \xff", "not YAML"),
        (b"seed: 2020-13-45", "not YAML"),
        (b"a: " + b"[" * 5_000, "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not YAML"),
        (b"#" * (1 << 20) + b"\na: 1", "1048581 bytes; a config has at most 1048576"),
    ],
    ids=["list", "empty", "syntax", "binary", "date", "nesting", "object", "size"],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            load_config(path)
        assert str(path) in str(caught.value)


def test_a_fault_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "backfill.yaml"
    path.write_text(yaml.safe_dump(values(seed="x")))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: seed: found 'x'")


def test_overrides_are_read_as_yaml_in_order_and_leave_the_callers_dict_alone() -> None:
    given = copy.deepcopy(VALUES)
    config = load_config(
        given,
        [
            "new_model.dim=64",
            "new_model.kwargs.device=cuda",
            "waves=[0.2, 1]",
            "index.factory=IVF64,Flat",
            "gallery.label_column=null",
            "objective.relevance=new_model",
            "seed=1",
            "seed=2",
            "output=/data/a=b",
        ],
    )
    assert given == VALUES
    assert (config.new_model.dim, config.new_model.kwargs) == (64, {"device": "cuda"})
    assert (config.waves, config.index.factory, config.seed) == ((0.2, 1.0), "IVF64,Flat", 2)
    assert (config.gallery.label_column, config.output) == (None, "/data/a=b")


def test_overrides_apply_to_a_ready_config_without_changing_it() -> None:
    ready = load_config(VALUES)
    assert load_config(ready, ["new_model.kwargs.device=cuda"]).new_model.kwargs == {"device": "cuda"}
    assert ready == load_config(VALUES)


def test_an_override_can_open_a_section_that_is_not_there() -> None:
    config = load_config(VALUES | {"queries": None}, ["queries={path: q, payload_columns: [t], label_column: l}"])
    assert config.queries is not None
    opened = ["queries.path=q", "queries.payload_columns=[t]", "queries.label_column=l"]
    assert load_config(VALUES | {"queries": None}, opened) == config
    assert load_config(VALUES, opened) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed", "--set seed: a.b=c is expected"),
        ("=1", "--set ...: a.b=c is expected"),
        ("output.path=x", "--set output.path: output holds str, it is not a section"),
        ("new_model.dim=[", "--set new_model.dim: the value is not YAML"),
        ("seed=2020-13-45", "--set seed: the value is not YAML"),
        ("new_model.dims=3", "config: new_model.dims: unknown key"),
        ("output=", "config: output: found None"),
    ],
)
def test_an_override_that_cannot_be_used_is_told(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(VALUES, [override])
    assert str(caught.value).startswith(told)


def test_the_quarantine_limit_is_the_larger_of_rows_and_share() -> None:
    limits = QuarantineConfig(max_rows=10, max_fraction=0.001)
    assert [limits.limit(rows) for rows in (0, 5, 10_000, 19_999, 1_000_000)] == [10, 10, 10, 19, 1000]


def test_a_path_may_be_a_list_whose_order_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    queries = {"path": ["q2", "q1"], "qrels_path": ["r"], "payload_columns": ["text"], "label_column": "topic"}
    path = tmp_path / "backfill.yaml"
    path.write_text(yaml.safe_dump(values(gallery={"path": ["b.parquet", "s3://bucket/a"]}, queries=queries)))
    config = load_config(path)
    assert config.gallery.path == (f"{tmp_path}/b.parquet", "s3://bucket/a")
    assert config.queries is not None
    assert (config.queries.path, config.queries.qrels_path) == ((f"{tmp_path}/q1", f"{tmp_path}/q2"), f"{tmp_path}/r")
    assert load_config(path, ["gallery.path=[s3://bucket/a, b.parquet]"]) == config
    assert load_config(config) == config
    assert plan_settings(config) == plan_settings(load_config(path, ["gallery.path=['s3://bucket/a', 'b.parquet']"]))
    assert load_config(path, ["gallery.path=[a.parquet, b.parquet]"]).gallery.path == (
        f"{tmp_path}/a.parquet",
        f"{tmp_path}/b.parquet",
    )
    assert load_config(path, ["gallery.path=[a.parquet]"]) == load_config(path, ["gallery.path=a.parquet"])
    assert load_config(path, ["queries.qrels_path=null"]).queries.qrels_path is None  # type: ignore[union-attr]


def test_a_path_in_a_list_with_credentials_is_refused_without_them() -> None:
    with pytest.raises(ConfigError, match=r"gallery\.path: the URL holds credentials") as caught:
        load_config(values(gallery={"path": ["a", "s3://user:canary@bucket/a"]}))
    assert "canary" not in str(caught.value)


def test_anonymous_is_outside_the_plan() -> None:
    config = load_config(VALUES, ["storage.anonymous=true"])
    assert config.storage.anonymous
    assert load_config(VALUES, ["storage.anonymous=yes"]) == config
    assert not load_config(VALUES).storage.anonymous
    assert plan_settings(config) == plan_settings(load_config(VALUES))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([""], "a program is expected first"),
        (["  ", "x"], "a program is expected first"),
        (["./load.sh", "a\0b"], "argument 1 holds a character that no program can be given"),
        (["./load.sh\0"], "argument 0 holds"),
        (["./load.sh", "\ud800"], "argument 1 holds"),
        ("./load.sh", "a list is expected"),
    ],
)
def test_a_command_that_nothing_can_start_is_refused(command: object, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"serving\.on_publish: .*{told}"):
        load_config(values(serving={"on_publish": command}))


def test_a_command_may_have_arguments_that_are_empty() -> None:
    assert load_config(values(serving={"on_publish": ["./load.sh", "", "ü"]})).serving.on_publish[1:] == ("", "ü")


def test_a_plan_of_before_a_key_is_the_same_plan_without_it() -> None:
    serving = {"serving": {"calibration": "auto", "old_queries": "embedder"}}
    for exclude in (True, False):
        plain = plan_settings(load_config(values()), exclude_defaults=exclude)
        assert plan_settings(load_config(values(**serving)), exclude_defaults=exclude) == plain
        assert "calibration" not in plain.get("serving", {})
        other = plan_settings(load_config(values(serving={"calibration": "no_scale"})), exclude_defaults=exclude)
        assert other["serving"]["calibration"] == "no_scale"
    with pytest.raises(ConfigError, match=r"serving\.calibration: found 'none'; .*'auto' or 'no_scale'"):
        load_config(values(serving={"calibration": "none"}))
