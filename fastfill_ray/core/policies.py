"""Rules that give each item one priority; larger = re-embed earlier. Pure functions of columns and pair statistics.

Legend: N items of a chunk, P reference pairs (the train split), D old dim, E new dim, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.core.calibration import Metric, similarity
from fastfill_ray.core.plan import seeded_hash

Floats = NDArray[np.float32]
Policy = Literal["random", "uncertainty", "entropy", "expected_gain", "class_margin", "class_loss"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
LABELLED: frozenset[Policy] = frozenset({"class_margin", "class_loss"})  # they read the gallery's labels
CLASSIFIED: frozenset[Policy] = frozenset({"entropy", "class_loss"})  # they need a classifier

GAIN_DEPTH = 10  # `expected_gain` looks at the first ten of each proxy query
# Share of the aligned score in the evidence of `expected_gain`; the rest is the old score. Measured on docstrings:
# overlap@10 of the curve 68.1 at 0.8, 68.0 at 0.6, 67.4 at 1.
GAIN_EVIDENCE = 0.7
_ROWS_AT_A_TIME = 1024


def random_priority(id_hash: NDArray[np.uint64], seed: int) -> Floats:
    """Uniform in [0, 1) from the id and the seed (N,): the order that costs nothing and promises nothing."""
    return ((seeded_hash(id_hash, seed) >> np.uint64(40)) / np.float32(1 << 24)).astype(np.float32)


def uncertainty(log_variance: Floats) -> Floats:
    """FastFill's order: the alignment's own log-variance of its error (Jaeckle et al., ICLR 2023, section 3.3)."""
    return log_variance


@dataclass(frozen=True)
class Head:
    """A linear softmax classifier of new vectors: the new model's own, or one fitted on the pairs.

    weight: (C, E). bias: (C,). classes: (C,) str, the label of each row.
    """

    weight: Floats
    bias: Floats
    classes: NDArray[np.str_]

    def log_probabilities(self, vectors: Floats) -> Floats:
        """log p(class) (N, C) in nats, of vectors (N, E)."""
        logits: Floats = vectors @ self.weight.T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def rows(self, labels: NDArray[np.object_]) -> NDArray[np.int64]:
        """The row of each label's class (N,): C for a class that the head does not know, C + 1 where there is none."""
        count = len(self.weight)
        known = {str(label): row for row, label in enumerate(self.classes)}
        return np.array(
            [count + 1 if label is None else known.get(str(label), count) for label in labels.tolist()], np.int64
        )


def entropy(aligned: Floats, head: Head) -> Floats:
    """Entropy in nats (N,) of the head's classes at the aligned vectors (N, E): how undecided the class is."""
    priority = np.empty(len(aligned), np.float32)
    for start in range(0, len(aligned), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        logs = head.log_probabilities(aligned[part])
        priority[part] = -(np.exp(logs) * logs).sum(axis=1)
    return priority


def class_loss(aligned: Floats, labels: NDArray[np.object_], head: Head) -> Floats:
    """Cross-entropy in nats (N,) of the head at the aligned vector and the item's own class: how wrong the class is.

    Reads the gallery's labels, so it suits a relevance that is that label, and no other. An item of a class that the
    head does not know gets the loss of the least likely class; one without a label the expected loss, the entropy.

    Args:
        aligned: (N, E). labels: (N,) class of each item; None where unknown.
    """
    priority = np.empty(len(aligned), np.float32)
    rows = head.rows(labels)
    for start in range(0, len(aligned), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        logs = head.log_probabilities(aligned[part])
        expected = -(np.exp(logs) * logs).sum(axis=1)
        losses = np.column_stack([-logs, -logs.min(axis=1), expected])
        priority[part] = losses[np.arange(len(losses)), rows[part]]
    return priority


@dataclass(frozen=True)
class Proxies:
    """Queries that stand for the users': train pairs, whose old and new vectors are both known.

    new: (P, E). old: (P, D). thresholds: (P,) score of each one's k-th best item of the gallery, in ``evidence``.
    spread: typical error of the evidence, in the same units. old_scale: brings old scores to the spread of new ones.
    """

    new: Floats
    old: Floats
    metric: Metric
    spread: float
    old_scale: float
    thresholds: Floats | None = None

    def evidence(self, old: Floats, aligned: Floats) -> Floats:
        """How near each item seems to each proxy query (P, N), by its old (N, D) and aligned (N, E) vectors."""
        share, scale = np.float32(1 - GAIN_EVIDENCE), np.float32(self.old_scale)
        near = similarity(self.new, aligned, self.metric)
        return np.float32(GAIN_EVIDENCE) * near + share * scale * similarity(self.old, old, self.metric)


def make_proxies(
    new: Floats, old: Floats, metric: Metric, *, items_new: Floats, items_old: Floats, items_aligned: Floats
) -> Proxies:
    """Proxy queries without thresholds yet; the spread of their evidence is measured on held-out items.

    Args:
        new, old: (P, E), (P, D) of train pairs.
        items_new, items_old, items_aligned: (N, E), (N, D), (N, E) of pairs that the map has not seen.
    """
    true, theirs = similarity(new, items_new, metric), similarity(old, items_old, metric)
    scale = 1.0 if metric == "cosine" else float(true.std() / max(float(theirs.std()), 1e-12))
    made = Proxies(new, old, metric, 1.0, scale)
    error = true - made.evidence(items_old, items_aligned)
    return replace(made, spread=max(float(error.std()), 1e-12))


def with_thresholds(proxies: Proxies, old: Floats, aligned: Floats) -> Proxies:
    """The proxies with the thresholds of a gallery that is at hand in full: old (N, D), aligned (N, E)."""
    return replace(proxies, thresholds=top_scores(proxies.evidence(old, aligned))[:, -1])


def top_scores(evidence: Floats, depth: int = GAIN_DEPTH) -> Floats:
    """The best `depth` scores per proxy query (P, depth), best first; -inf where there are fewer items."""
    best = evidence
    if evidence.shape[1] > depth:
        best = -np.partition(-evidence, depth - 1, axis=1)[:, :depth]
    padded = np.pad(best, [(0, 0), (0, depth - best.shape[1])], constant_values=-np.inf)
    return -np.sort(-padded, axis=1)


def merge_top(parts: Iterable[Floats], depth: int = GAIN_DEPTH) -> Floats:
    """``top_scores`` of the union from those of the parts; the order of the parts does not matter."""
    merged: Floats | None = None
    for part in parts:
        merged = part if merged is None else top_scores(np.concatenate([merged, part], axis=1), depth)
    if merged is None:
        raise ValueError("no scores to merge")
    return merged


def expected_gain(old: Floats, aligned: Floats, proxies: Proxies) -> Floats:
    """In how many proxy queries' first ten the item is expected to be: what a query loses while it is stale.

    sum_q Phi((s(q, i) - tau_q) / spread), tau_q the k-th best score of q over the gallery. The logistic function stands
    for Phi (largest difference 0.01; Bowling et al., 2009). Reads no label.

    Args:
        old: (N, D). aligned: (N, E). proxies: with thresholds.
    """
    assert proxies.thresholds is not None
    thresholds = np.where(np.isfinite(proxies.thresholds), proxies.thresholds, np.float32(0))
    priority = np.empty(len(old), np.float32)
    for start in range(0, len(old), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        above = (proxies.evidence(old[part], aligned[part]) - thresholds[:, None]) / np.float32(proxies.spread)
        priority[part] = (1 / (1 + np.exp(np.clip(-1.702 * above, -60, 60)))).sum(axis=0)
    return priority


def class_margin(
    aligned: Floats, labels: NDArray[np.object_], reference: Floats, reference_labels: NDArray[np.object_]
) -> Floats:
    """How much nearer another class is: min squared distance to the own class minus min to the others, over the pairs.

    Reads the gallery's labels, so it suits a relevance that is that label, and no other.

    Args:
        aligned: (N, E) mapped vectors.
        labels: (N,) class of each item; None where unknown.
        reference: (P, E) new vectors of the train pairs.
        reference_labels: (P,) their classes; None is no class, neither an item's own nor another.

    Returns:
        (N,) float32; an item whose class no pair has is as uncertain as the worst distance seen.
    """
    priority = np.empty(len(aligned), np.float32)
    # Class numbers instead of objects: N x P comparisons. None is -1 in the reference and -2 among the items.
    number = {label: i for i, label in enumerate(dict.fromkeys(reference_labels.tolist())) if label is not None}
    classes = np.array([number.get(label, -1) for label in reference_labels.tolist()])
    mine = np.array([number.get(label, -2) for label in labels.tolist()])
    known = classes >= 0
    for start in range(0, len(aligned), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        distances = -similarity(aligned[part], reference, "l2")
        same = mine[part, None] == classes[None, :]
        worst = distances.max(axis=1)
        own = np.where(same & known, distances, np.inf).min(axis=1)
        other = np.where(~same & known, distances, np.inf).min(axis=1)
        priority[part] = np.where(np.isinf(own), worst, own) - np.where(np.isinf(other), worst, other)
    return priority


@dataclass(frozen=True)
class Reference:
    """What the train pairs tell the policies; each part is None where no policy in use asks for it.

    new: (P, E) with labels (P,), for `class_margin`. head: for `entropy` and `class_loss`.
    proxies: with thresholds, for `expected_gain`.
    """

    new: Floats | None = None
    labels: NDArray[np.object_] | None = None
    head: Head | None = None
    proxies: Proxies | None = None


def priority_of(
    policy: Policy,
    reference: Reference,
    *,
    id_hash: NDArray[np.uint64],
    old: Floats,
    aligned: Floats,
    log_variance: Floats,
    labels: NDArray[np.object_] | None,
    seed: int,
) -> Floats:
    """The priority (N,) float32 of each item under a policy, from its columns and the reference."""
    if policy == "random":
        return random_priority(id_hash, seed)
    if policy == "entropy":
        assert reference.head is not None
        return entropy(aligned, reference.head)
    if policy == "expected_gain":
        assert reference.proxies is not None
        return expected_gain(old, aligned, reference.proxies)
    if policy == "class_margin":
        assert labels is not None
        assert reference.new is not None
        assert reference.labels is not None
        return class_margin(aligned, labels, reference.new, reference.labels)
    if policy == "class_loss":
        assert labels is not None
        assert reference.head is not None
        return class_loss(aligned, labels, reference.head)
    return uncertainty(log_variance)


def weighted(policy: Policy, priority: Floats, weight: Floats, reference: Reference) -> Floats:
    """Priorities (N,) times how often each item is asked for (N,), so that traffic counts and the order stays a rate.

    A log-variance is a logarithm, so the logarithm of the weight is added. A class margin has both signs: its logistic
    function, in units of the spread of the reference, is what is multiplied. A weight of 0 puts an item last.
    """
    weight = np.maximum(weight, 0).astype(np.float32)
    if policy == "uncertainty":
        with np.errstate(divide="ignore"):
            return np.maximum(priority + np.log(weight), np.finfo(np.float32).min)
    if policy == "class_margin":
        assert reference.new is not None
        spread = float(np.square(reference.new - reference.new.mean(axis=0)).sum(axis=1).mean()) or 1.0
        priority = (1 / (1 + np.exp(-np.clip(priority / spread, -60, 60)))).astype(np.float32)
    return priority * weight
