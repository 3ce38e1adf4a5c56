"""The versions of a run on the shadow gallery against brute force, query by query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment import versions as module
from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import Measured, Shadow, Unseen, make_shadow, scores_of
from fastfill_ray.experiment.versions import ShadowVersions, sought_share
from fastfill_ray.ordering.waves import wave_middles
from fastfill_ray.retrieval.calibration import MixedScores, OrderCalibration, fit_calibration
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.retrieval.ranking import ranks_of
from fastfill_ray.retrieval.relevance import Judgement, RelevantItems
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32, Metric, Relevance
from tests.retrieval.test_metrics import reference

N, DIM, WAVES = 40, 5, 3
RNG = np.random.default_rng(0)
OLD, NEW = RNG.normal(size=(2, N, DIM)).astype(np.float32)
ALIGNED = (NEW + 0.5 * RNG.normal(size=(N, DIM))).astype(np.float32)
LABELS = RNG.integers(0, 4, N)
ORDER = RNG.integers(1, WAVES + 2, N).astype(np.int16)
SAMPLED = RNG.random(N) < 0.2
MIDDLES = wave_middles((0.3, 0.6, 0.9), 0.1)
ITEMS = PairedItems(np.arange(N).astype(object), OLD, NEW, np.array(["audit"] * N, object), LABELS.astype(object))
LABEL_MAP = Objective("label", "map")


def versions(metric: Metric = "cosine", **changes: Any) -> ShadowVersions:
    """Items that query each other: an item is not a hit of its own."""
    queries = ITEMS.as_queries()
    stale = scores_of(NEW, ALIGNED, metric, Unseen.of(ITEMS, queries))
    made = ShadowVersions(make_shadow(ITEMS, queries, metric), stale, ORDER, MIDDLES, SAMPLED)
    return replace(made, **changes)


def measured(made: ShadowVersions, wave: int, calibration: OrderCalibration) -> Measured:
    return made.shadow.measure(made.state(wave).under(calibration))


def brute_force(scores: NDArray[np.float64], relevant: list[set[int]]) -> list[dict[str, float]]:
    """`scores` (Q, N) ranked by loops; query q is item q."""
    values = []
    for q, row in enumerate(scores.tolist()):
        others = sorted((n for n in range(N) if n != q), key=lambda n: (-row[n], n))
        values.append(reference([n in relevant[q] for n in others], len(relevant[q])))
    return values


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("wave", range(WAVES + 2))
def test_a_version_of_the_shadow_equals_brute_force(metric: Metric, wave: int) -> None:
    calibration = OrderCalibration(scale=0.9, offset=0.05, slope=0.1)
    new = similarity(NEW, NEW, metric)
    middle = np.array([0.0, 1 / 9, 7 / 18, 13 / 18, 17 / 18], np.float32)[ORDER]
    stale = np.float32(0.9) * similarity(NEW, ALIGNED, metric) + np.float32(0.05) + np.float32(0.1) * middle
    mixed = np.where((wave >= ORDER) | SAMPLED, new, stale)
    same_label = [{n for n in range(N) if n != q and LABELS[n] == LABELS[q]} for q in range(N)]
    top = [set(sorted((n for n in range(N) if n != q), key=lambda n: -new[q, n])[:10]) for q in range(N)]
    values = measured(versions(metric), wave, calibration)
    relevances: dict[Relevance, list[set[int]]] = {"label": same_label, "new_model": top}
    for relevance, relevant in relevances.items():
        for q, expected in enumerate(brute_force(mixed, relevant)):
            for name in METRICS:
                assert values[relevance, name][q] == pytest.approx(expected[name], nan_ok=True, abs=1e-9)


def test_the_last_wave_is_the_new_model_itself_whatever_the_calibration() -> None:
    values = measured(versions(), WAVES + 1, OrderCalibration(scale=3, offset=-7))
    assert (values["new_model", "recall@10"] == 1).all()
    assert (values["new_model", "map"] == 1).all()


def test_a_querys_own_item_is_excluded_from_every_state() -> None:
    made = versions()
    assert made.shadow.old is not None
    for scores in (made.shadow.old, made.shadow.new, made.state(1).under(OrderCalibration(2.0, 9.0, 1.0))):
        assert (np.diag(scores) == -np.inf).all()
        assert np.isfinite(scores).sum() == N * (N - 1)


@pytest.mark.parametrize("wave", range(WAVES + 2))
def test_the_items_that_stand_for_the_pairs_are_new_in_every_version(wave: int) -> None:
    state = versions().state(wave)
    assert state.is_new.tolist() == ((wave >= ORDER) | SAMPLED).tolist()
    np.testing.assert_array_equal(state.position, MIDDLES[ORDER])


def test_the_calibration_is_fitted_on_the_state_that_is_measured() -> None:
    made = versions()
    relevant = made.shadow.relevant["label"]
    for wave in range(WAVES + 1):
        state = MixedScores(made.stale, made.shadow.new, (wave >= ORDER) | SAMPLED, MIDDLES[ORDER])
        expected = fit_calibration(state, relevant, "map", "scale_offset_by_wave")
        assert made.fit(wave, LABEL_MAP, "scale_offset_by_wave") == expected
    assert replace(made, sampled=np.zeros(N, bool)).fit(0, LABEL_MAP, "offset") == OrderCalibration()


def test_a_fit_looks_at_the_first_queries_that_have_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.where(np.arange(N) % 3 == 0, -1 - np.arange(N), LABELS)  # every third item is alone in its class
    items = replace(ITEMS, labels=labels.astype(object))
    made = versions(shadow=make_shadow(items, items.as_queries(), "cosine"))
    has_answer = np.flatnonzero(made.shadow.answered("label"))
    assert 10 < len(has_answer) < N
    monkeypatch.setattr(module, "fit_queries", lambda metric: 10)
    rows = has_answer[:10]
    state = MixedScores(made.stale[rows], made.shadow.new[rows], (ORDER <= 1) | SAMPLED, MIDDLES[ORDER])
    expected = fit_calibration(state, made.shadow.relevant["label"].take(rows), "map", "scale_offset")
    assert made.fit(1, LABEL_MAP, "scale_offset") == expected


def test_the_middles_of_waves_are_places_in_the_order_of_all_items_but_the_pairs() -> None:
    np.testing.assert_allclose(wave_middles((0.3, 0.6, 0.9), 0.1), [0, 1 / 9, 7 / 18, 13 / 18, 17 / 18], rtol=1e-6)
    np.testing.assert_allclose(wave_middles((1.0,), 0.5), [0, 0.5, 1.0])


# What users took

TAKEN = Objective("log", "mrr")


def seeking(sought: list[int], stale: F32, new: F32, **changes: Any) -> ShadowVersions:
    """Queries that each seek one item, with scores (Q, N)."""
    starts = np.arange(len(sought) + 1)
    relevant = RelevantItems(np.array(sought), starts, np.ones(len(sought)))
    shadow = Shadow(new, None, {"log": relevant, "qrels": relevant})
    return replace(versions(), **{"shadow": shadow, "stale": stale, "sampled": np.zeros(N, bool), **changes})


def found_by(sought: list[int]) -> tuple[F32, F32]:
    """Stale and new scores (Q, N): what is sought scores high, and everything lower while it is stale."""
    rng = np.random.default_rng(4)
    new = rng.normal(size=(len(sought), N)).astype(np.float32)
    new[np.arange(len(sought)), sought] += 3
    return (0.7 * new - 1.5 + 0.2 * rng.normal(size=new.shape)).astype(np.float32), new


def expected_mrr(made: ShadowVersions, wave: int, calibration: OrderCalibration) -> float:
    """By the scores themselves: each query's own item new with the given probability, all others as they are."""
    relevant, state = made.shadow.relevant["log"], made.state(wave)
    served, alone = state.under(calibration), calibration.apply(state.stale, state.position)
    rows, total = np.arange(len(served)), 0.0
    by_order = (made.waves <= wave)[relevant.items]
    for share, are_new in ((made.sought_share, True), (1 - made.sought_share, by_order)):
        scores = served.copy()
        new, stale = state.new[rows, relevant.items], alone[rows, relevant.items]
        scores[rows, relevant.items] = np.where(are_new, new, stale)
        total += share * float(np.mean(1 / ranks_of(scores, {"": relevant})[""]))
    return total


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("wave", [0, 2])
def test_what_users_took_is_new_as_likely_as_their_traffic_says(wave: int, share: float) -> None:
    sought = [3] * 30 + list(range(20))
    stale, new = found_by(sought)
    made = seeking(sought, stale, new, sampled=SAMPLED, sought_share=share)
    fitted = made.fit(wave, TAKEN, "scale_offset")
    assert (fitted == OrderCalibration()) == (share == 1)
    best, plain = (expected_mrr(made, wave, each) for each in (fitted, OrderCalibration()))
    assert best > plain or share == 1
    for near in (0.5, -0.5):  # in units of a gap: the fit is at a peak, up to the steps of the search
        assert expected_mrr(made, wave, replace(fitted, offset=fitted.offset + near)) < best + 0.02


def test_where_all_items_are_sought_a_calibration_is_fitted_all_the_same() -> None:
    sought = list(range(N))
    stale, new = found_by(sought)
    assert seeking(sought, stale, new, sampled=SAMPLED, sought_share=0.3).fit(0, TAKEN, "offset").offset > 0


def test_judgements_are_fitted_in_the_state_that_is_measured() -> None:
    sought = [3] * 30 + list(range(20))
    stale, new = found_by(sought)
    made = seeking(sought, stale, new, sampled=SAMPLED, sought_share=0.9)
    expected = fit_calibration(made.state(1), made.shadow.relevant["qrels"], "mrr", "scale_offset")
    assert made.fit(1, Objective("qrels", "mrr"), "scale_offset") == expected


@pytest.mark.parametrize(("times", "others", "taken"), [(40, 2, True), (40, 19, False), (40, 0, False)])
def test_a_calibration_that_one_popular_item_alone_asks_for_is_refused(
    times: int, others: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stale items rank above all new ones by it: good for item 0, which is stale, and bad for the others, which are new.
    lifted = OrderCalibration(offset=9.0)
    monkeypatch.setattr(module, "fit_calibration", lambda *_: lifted)
    waves = np.where(np.arange(N) < 20, WAVES + 1, 1).astype(np.int16)
    sought = [0] * times + list(range(20, 20 + others))
    new = np.random.default_rng(5).normal(size=(len(sought), N)).astype(np.float32)
    new[np.arange(len(sought)), sought] = 3
    fitted = seeking(sought, new - 2, new, waves=waves).fit(1, TAKEN, "offset")
    assert fitted == (lifted if taken else OrderCalibration())


def test_with_what_probability_something_taken_is_new_goes_by_the_traffic() -> None:
    items = replace(ITEMS, added=np.arange(N) >= 30)
    answers = [0] * 6 + [1] * 3 + [35]

    def queries(taken: list[int], judged_as: Relevance = "log") -> Queries:
        judged = tuple(Judgement(row, item) for row, item in enumerate(taken))
        return Queries(np.arange(len(taken)).astype(object), NEW[: len(taken)], judged=judged, judged_as=judged_as)

    assert sought_share(queries(answers), items, 1.0, 0.2) == pytest.approx(0.9)
    assert sought_share(queries([*answers, 999]), items, 1.0, 0.2) == pytest.approx(0.9), "999 is nowhere"
    # An added item stands for three; of those that are no pairs an earlier plan has made half new.
    assert sought_share(queries(answers), items, 3.0, 0.2) == pytest.approx(0.75)
    assert sought_share(queries(answers), items, 1.0, 0.6, 0.5) == pytest.approx(0.95)
    # Where it is known which of them these are, that counts.
    for carried, expected in ((35, 1.0), (36, 0.75), (1, 0.75)):
        known = replace(items, carried=np.arange(N) == carried)
        assert sought_share(queries(answers), known, 3.0, 0.6, 0.5) == pytest.approx(expected)
    for other in (queries(answers, "qrels"), queries([999]), replace(queries(answers), judged=None)):
        assert sought_share(other, items, 1.0, 0.2) == 0.2
    assert sought_share(queries(answers), items, None, 0.2) == 0.2
