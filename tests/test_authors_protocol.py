"""The published evaluation (Jaeckle et al., ICLR 2023; Ramanujan et al., CVPR 2022), written again as plain loops.

Queries = gallery, self excluded, squared L2 on vectors as they are, items re-embedded by descending log-variance,
floor(i N / 21) of them new for i = 0..21, the area the plain mean of the 22 values; CMC@1, CMC@5, mAP.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fastfill_ray.alignment.maps import Method
from fastfill_ray.alignment.pairs import training_pairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.policies import random_priority
from fastfill_ray.simulation import simulate

TRAIN, GALLERY, SEED = 200, 150, 3
METRICS = ("cmc@1", "cmc@5", "map")
METHODS: tuple[Method, ...] = ("fastfill", "ridge")
Vectors = NDArray[np.float64]


def two_models(images: Vectors, labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Old: six principal components of half of the classes. New: twelve of all, and some random ReLU features."""
    half = images[labels < 5]
    old = (images - half.mean(axis=0)) @ np.linalg.svd(half - half.mean(axis=0), full_matrices=False)[2][:6].T
    centred = images - images.mean(axis=0)
    principal = centred @ np.linalg.svd(centred, full_matrices=False)[2][:12].T
    features = np.maximum(centred @ np.random.default_rng(0).normal(size=(64, 6)) / 4, 0)
    return old.astype(np.float32), np.concatenate([principal, features], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def pairs() -> PairedItems:
    """Train pairs and a gallery with no calibration split; one class has a single item in the gallery."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(labels))
    chosen = chosen[labels[chosen] != 9][: TRAIN + GALLERY - 1].tolist() + chosen[labels[chosen] == 9][:1].tolist()
    images, labels = images[chosen] / 16, labels[chosen].astype(np.int64)
    old, new = two_models(images, labels)
    ids = np.arange(len(labels))
    split = np.array(["train"] * TRAIN + ["audit"] * GALLERY, object)
    return PairedItems(ids.astype(object), old, new, split, labels.astype(object))


def classifier(pairs: PairedItems) -> Classifier:
    """Nearest class mean as a linear classifier, of the new vectors."""
    train = pairs.part("train")
    assert train.labels is not None
    seen = [train.new[train.labels == c] for c in range(10)]
    means = np.stack([rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1]) for rows in seen])
    bias = (-np.square(means).sum(axis=1) / 2).astype(np.float32)
    return Classifier.of_class_numbers(means.astype(np.float32), bias)


@pytest.fixture(scope="module")
def report(pairs: PairedItems) -> dict[str, Any]:
    return simulate(
        pairs, protocol="authors", methods=METHODS, classifier=classifier(pairs), seed=SEED, stream=io.StringIO()
    ).data


# Again, in plain loops


def distance(a: Vectors, b: Vectors) -> float:
    return math.fsum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def distances(queries: Vectors, gallery: Vectors) -> list[list[float]]:
    return [[distance(query, item) for item in gallery] for query in queries]


def evaluate(table: list[list[float]], labels: list[int]) -> dict[str, float]:
    """The three figures of one state, in which `table` holds each query's distance to each item."""
    sums = dict.fromkeys(METRICS, 0.0)
    answered = 0
    for query, row in enumerate(table):
        others = [item for item in range(len(labels)) if item != query]
        others.sort(key=lambda item: row[item])
        matches = [labels[item] == labels[query] for item in others]
        if not any(matches):
            continue
        answered += 1
        sums["cmc@1"] += matches[0]
        sums["cmc@5"] += any(matches[:5])
        precisions = [sum(matches[:place]) / place for place, match in enumerate(matches, 1) if match]
        sums["map"] += sum(precisions) / len(precisions)
    return {metric: total / answered for metric, total in sums.items()}


def curve(
    new: list[list[float]], stale: list[list[float]], order: list[int], labels: list[int]
) -> list[dict[str, float]]:
    points = []
    for i in range(22):
        fresh = set(order[: math.floor(i * len(order) / 21)])
        mixed = [
            [n if item in fresh else s for item, (n, s) in enumerate(zip(new_row, stale_row, strict=True))]
            for new_row, stale_row in zip(new, stale, strict=True)
        ]
        points.append(evaluate(mixed, labels))
    return points


def aligned(pairs: PairedItems, method: Method) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    train = training_pairs(pairs.part("train"), method, classifier(pairs))
    fit = Fit(method, "default", train, seed=SEED)
    while fit.epoch < fit.epochs:
        fit.step()
    return fit.finish()(pairs.part("audit").old)


# They agree


def test_the_arms_are_the_published_figures_of_old_and_new_vectors_alone(
    pairs: PairedItems, report: dict[str, Any]
) -> None:
    gallery = pairs.part("audit")
    assert gallery.labels is not None
    for arm, vectors in (("new/new", gallery.new), ("old/old", gallery.old)):
        plain = vectors.astype(np.float64)
        expected = evaluate(distances(plain, plain), gallery.labels.tolist())
        for metric in METRICS:
            reported = report["arms"][arm][f"label/{metric}"]
            assert reported["value"] == pytest.approx(expected[metric], abs=1e-6)
            assert reported["queries"] == GALLERY - 1  # the only item of its class has no match


@pytest.mark.parametrize("method", METHODS)
def test_every_point_of_both_curves_and_their_areas_agree_with_plain_loops(
    pairs: PairedItems, report: dict[str, Any], method: Method
) -> None:
    gallery = pairs.part("audit")
    assert gallery.labels is not None
    labels = gallery.labels.tolist()
    h, log_variance = aligned(pairs, method)
    queries = gallery.new.astype(np.float64)
    new, stale = distances(queries, queries), distances(queries, h.astype(np.float64))
    priorities = {"uncertainty": log_variance, "random": random_priority(gallery.id_hash, SEED)}
    for policy, priority in priorities.items():
        order = sorted(range(GALLERY), key=lambda item: -float(priority[item]))
        expected = curve(new, stale, order, labels)
        (reported,) = [c for c in report["curves"] if (c["method"], c["policy"]) == (method, policy)]
        assert (reported["stale_mode"], reported["calibration"]) == ("aligned", "identity")
        assert reported["fractions"] == pytest.approx(
            [math.floor(i * GALLERY / 21) / GALLERY for i in range(22)], abs=1e-6
        )
        for metric in METRICS:
            values = [point[metric] for point in expected]
            assert reported["values"][f"label/{metric}"]["curve"] == pytest.approx(values, abs=1e-6)
            assert reported["values"][f"label/{metric}"]["area"] == pytest.approx(sum(values) / 22, abs=1e-6)


def test_a_curve_runs_from_all_aligned_to_all_new_and_gains_on_the_way(report: dict[str, Any]) -> None:
    for reported in report["curves"]:
        values = reported["values"]["label/map"]
        assert values["curve"][-1] == report["arms"]["new/new"]["label/map"]["value"]
        assert values["curve"][0] < values["curve"][-1]


def test_nothing_is_chosen_and_both_orders_of_every_map_are_reported(report: dict[str, Any]) -> None:
    assert (report["protocol"], report["objective"], report["choice"], report["metric"]) == (
        "authors",
        None,
        None,
        "l2",
    )
    reported = [(c["method"], c["policy"]) for c in report["curves"]]
    assert reported == [(method, policy) for method in METHODS for policy in ("random", "uncertainty")]


@pytest.mark.parametrize("option", [{"objective": "label/map"}, {"queries": "q.parquet"}, {"policies": ["random"]}])
def test_what_the_protocol_has_no_place_for_is_refused(pairs: PairedItems, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"protocol authors: {next(iter(option))} has no place"):
        simulate(pairs, protocol="authors", methods=["ridge"], **option)
