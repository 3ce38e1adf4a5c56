"""The paper's protocol on scikit-learn's digits: old network trained on half of the classes, new one on all."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

import fastfill_ray as ff
from fastfill_ray.index.verify import verify
from fastfill_ray.log.state import State
from fastfill_ray.storage.files import open_files
from tests.digits import NEW_DIM, DigitsInput, build_digits


def config(digits: DigitsInput, gallery: str, output: str, **more: Any) -> dict[str, Any]:
    return {
        "gallery": {"path": gallery, "payload_columns": ["image"], "label_column": "label"},
        "new_model": {
            "embedder": "tests.digits:DigitsEmbedder",
            "kwargs": {"weights": str(digits.new_weights)},
            "dim": NEW_DIM,
            "metric": "l2",
            "classifier": str(digits.classifier),
        },
        "pairs": {"count": 250},
        "alignment": {"method": "fastfill"},
        "policy": {"name": "uncertainty"},
        "waves": [0.35, 0.6, 1.0],
        "resources": {"embed_actors": [1, 1], "chunk_rows": 128},
        "output": output,
        **more,
    }


def figures(state: State) -> list[tuple[Any, ...]]:
    """Everything measured that must not depend on where the files are."""
    return [
        (v.wave, m.scope, m.relevance, m.metric, m.calibrated, round(m.value, 6), m.queries)
        for v in state.plan_versions
        for m in v.metrics
    ]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsInput:
    return build_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def on_s3(digits: DigitsInput, moto_endpoint: str, ray_session: None) -> tuple[str, State]:
    """The root on S3, and what a run from S3 to S3 came to."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    client = boto3.client("s3", endpoint_url=moto_endpoint)
    client.create_bucket(Bucket=bucket)
    for shard in sorted(Path(digits.gallery).glob("*.parquet")):
        client.upload_file(str(shard), bucket, f"gallery/{shard.name}")
    root = f"s3://{bucket}/run"
    run = config(digits, f"s3://{bucket}/gallery", root, storage={"s3_endpoint": moto_endpoint})
    return root, ff.run_backfill(run).state


def test_digits_reach_the_new_model(on_s3: tuple[str, State]) -> None:
    _, state = on_s3

    def cmc(version: int) -> float:
        metrics = state.versions[version].metrics
        return next(
            m.value
            for m in metrics
            if (m.scope, m.relevance, m.metric, m.calibrated) == ("gallery", "label", "cmc@1", True)
        )

    assert state.plan is not None
    old = next(m for m in state.plan.baselines["old/old"] if (m.scope, m.metric) == ("gallery", "cmc@1"))
    assert [v.new_rows for v in state.versions] == [250, 314, 538, 897]
    assert cmc(0) > old.value, "with the new model's queries the mixed index is better than the old one"
    assert cmc(3) > 0.97
    assert state.serving == 3


def test_an_index_on_s3_is_whole_and_searchable_at_once(on_s3: tuple[str, State], moto_endpoint: str) -> None:
    root, _ = on_s3
    assert len(verify(open_files(root, s3_endpoint=moto_endpoint))) == 4
    scores, ids = ff.open_index(root, s3_endpoint=moto_endpoint).search(np.ones((1, NEW_DIM), np.float32), k=3)
    assert scores.shape == ids.shape == (1, 3)


@pytest.mark.slow
def test_the_same_digits_on_local_files_come_to_the_same(
    digits: DigitsInput, on_s3: tuple[str, State], tmp_path: Path
) -> None:
    state = ff.run_backfill(config(digits, str(digits.gallery), str(tmp_path / "out"))).state
    assert figures(state) == figures(on_s3[1])
    assert state.published == on_s3[1].published
