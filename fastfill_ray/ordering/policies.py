"""Rules that give each item one priority; larger = re-embed earlier. Pure functions of columns and pair statistics.

Legend: N items of a chunk, P reference pairs (the train split), D old dim, E new dim, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.demand import Demand, TakenItems, column_priority, demand, taken
from fastfill_ray.ordering.ids import seeded_hash
from fastfill_ray.ordering.proxies import Proxies
from fastfill_ray.types import F32, U64, Objects

T = TypeVar("T")

Policy = Literal[
    "random", "uncertainty", "entropy", "expected_gain", "class_margin", "class_loss", "demand", "taken", "column"
]
POLICIES: tuple[Policy, ...] = get_args(Policy)
LABELLED: frozenset[Policy] = frozenset({"class_margin", "class_loss"})  # they read the gallery's labels
CLASSIFIED: frozenset[Policy] = frozenset({"entropy", "class_loss"})  # they need a classifier
LOGGED: frozenset[Policy] = frozenset({"demand", "taken"})  # they need a query log
_ROWS_AT_A_TIME = 1024
_DISTANCES = 1 << 22  # held at a time: fewer, and matrix products of many pairs are slow


def random_priority(id_hash: U64, seed: int) -> F32:
    """Uniform in [0, 1) from the id and the seed (N,): the order that costs nothing and promises nothing."""
    return ((seeded_hash(id_hash, seed) >> np.uint64(40)) / np.float32(1 << 24)).astype(np.float32)


def uncertainty(log_variance: F32) -> F32:
    """FastFill's order: the alignment's own log-variance of its error (Jaeckle et al., ICLR 2023, section 3.3)."""
    return log_variance


def entropy(aligned: F32, classifier: Classifier) -> F32:
    """Entropy in nats (N,) of the classifier's classes at the aligned vectors (N, E): how undecided the class is."""
    priority = np.empty(len(aligned), np.float32)
    for start in range(0, len(aligned), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        logs = classifier.log_probabilities(aligned[part])
        priority[part] = -(np.exp(logs) * logs).sum(axis=1)
    return priority


def class_loss(aligned: F32, labels: Objects, classifier: Classifier) -> F32:
    """Cross-entropy in nats (N,) of the classifier at the aligned vector and the item's own class: how wrong that is.

    Reads the gallery's labels, so it suits a relevance that is that label, and no other. An item of a class that the
    classifier does not know gets the loss of the least likely class; one without a label the entropy.

    Args:
        aligned: (N, E). labels: (N,) class of each item; None where unknown.
    """
    priority = np.empty(len(aligned), np.float32)
    rows = classifier.rows(labels)
    for start in range(0, len(aligned), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        logs = classifier.log_probabilities(aligned[part])
        expected = -(np.exp(logs) * logs).sum(axis=1)
        losses = np.column_stack([-logs, -logs.min(axis=1), expected])
        priority[part] = losses[np.arange(len(losses)), rows[part]]
    return priority


def expected_gain(old: F32, aligned: F32, proxies: Proxies) -> F32:
    """In how many proxy queries' first ten the item is expected to be: what a query loses while it is stale.

    sum_q Phi((s(q, i) - tau_q) / spread), tau_q the k-th best score of q over the gallery; see ``Proxies.chances``.
    Reads no label.

    Args:
        old: (N, D). aligned: (N, E). proxies: with thresholds.

    Raises:
        ValueError: proxies without thresholds.
    """
    _needed(proxies.thresholds, "expected_gain", "thresholds of its proxy queries")
    priority = np.empty(len(old), np.float32)
    for part, chances in proxies.chances(old, aligned):
        chances.sum(axis=0, out=priority[part])
    return priority


def class_margin(aligned: F32, labels: Objects, reference: F32, reference_labels: Objects) -> F32:
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
    known = dict.fromkeys(label for label in reference_labels.tolist() if label is not None)
    number = {label: i for i, label in enumerate(known)}
    classes = np.array([number.get(label, len(number)) for label in reference_labels.tolist()])
    mine = np.array([number.get(label, -1) for label in labels.tolist()], np.int64)
    # Class after class, those without one last, so that the least distance to each class is one pass over the rows.
    order = np.argsort(classes, kind="stable")
    reference, classes = reference[order], classes[order]
    starts = np.searchsorted(classes, np.arange(len(number)))
    num_known = int(np.searchsorted(classes, len(number)))
    rows = max(1, _DISTANCES // max(1, len(reference)))
    # |a - r|^2 - |a|^2: what an item adds to all its distances falls out of their difference.
    minus_twice, squares = -2 * reference, np.square(reference).sum(axis=1)
    for start in range(0, len(aligned), rows):
        part = slice(start, start + rows)
        distances = aligned[part] @ minus_twice.T
        distances += squares
        worst = distances.max(axis=1)
        least = np.full((len(distances), len(number) + 1), np.inf, np.float32)  # the last of an item without a class
        if len(number):
            least[:, :-1] = np.minimum.reduceat(distances[:, :num_known], starts, axis=1)
        everyone = np.arange(len(least))
        own = least[everyone, mine[part]]
        least[everyone, mine[part]] = np.inf
        other = least.min(axis=1)
        priority[part] = np.where(np.isinf(own), worst, own) - np.where(np.isinf(other), worst, other)
    return priority


@dataclass(frozen=True)
class Reference:
    """What the train pairs tell the policies; each part is None where no policy in use asks for it.

    new: (P, E) with labels (P,), for `class_margin`. classifier: for `entropy` and `class_loss`.
    proxies: with thresholds, for `expected_gain`. demand: of the query log, with thresholds, for `demand` and `taken`.
    taken: what users took, for `taken`.
    """

    new: F32 | None = None
    labels: Objects | None = None
    classifier: Classifier | None = None
    proxies: Proxies | None = None
    demand: Demand | None = None
    taken: TakenItems | None = None


@dataclass(frozen=True)
class ItemColumns:
    """What policies read of N items. id_hash: (N,). old: (N, D), aligned: (N, E) as they are indexed.

    log_variance: (N,) of the alignment. labels: (N,), None in it where unknown. weights: (N,) how often each is asked
    for; None where nothing is known. priority: (N,) of the user's own column, NaN where unknown; None without one.
    """

    id_hash: U64
    old: F32
    aligned: F32
    log_variance: F32
    labels: Objects | None = None
    weights: F32 | None = None
    priority: F32 | None = None


def priority_of(policy: Policy, items: ItemColumns, reference: Reference, *, seed: int) -> F32:
    """The priority (N,) float32 of each item under a policy, times its weight where there are weights.

    A priority of the user's own is taken as it is.

    Raises:
        ValueError: the policy reads something that neither the items nor the reference have.
    """
    if policy == "column":
        return column_priority(_needed(items.priority, policy, "priorities of the items").astype(np.float64))
    priority = _unweighted(policy, items, reference, seed)
    return priority if items.weights is None else weighted(policy, priority, items.weights, reference)


def _unweighted(policy: Policy, items: ItemColumns, reference: Reference, seed: int) -> F32:
    if policy == "random":
        return random_priority(items.id_hash, seed)
    if policy == "entropy":
        return entropy(items.aligned, _needed(reference.classifier, policy, "a classifier"))
    if policy == "expected_gain":
        return expected_gain(items.old, items.aligned, _needed(reference.proxies, policy, "proxy queries"))
    if policy == "class_margin":
        return class_margin(
            items.aligned,
            _needed(items.labels, policy, "labels of the items"),
            _needed(reference.new, policy, "new vectors of the train pairs"),
            _needed(reference.labels, policy, "labels of the train pairs"),
        )
    if policy == "class_loss":
        labels = _needed(items.labels, policy, "labels of the items")
        return class_loss(items.aligned, labels, _needed(reference.classifier, policy, "a classifier"))
    if policy in LOGGED:
        demanded = demand(items.old, items.aligned, _needed(reference.demand, policy, "a query log"))
        if policy == "demand":
            return demanded
        return taken(items.id_hash, _needed(reference.taken, policy, "items that users took"), demanded)
    return uncertainty(items.log_variance)


def _needed(part: T | None, policy: Policy, name: str) -> T:
    """`part`, which a policy cannot do without."""
    if part is None:
        raise ValueError(f"policy {policy} needs {name}, which is missing")
    return part


def weighted(policy: Policy, priority: F32, weight: F32, reference: Reference) -> F32:
    """Priorities (N,) times how often each item is asked for (N,), so that traffic counts and the order stays a rate.

    A log-variance is a logarithm, so the logarithm of the weight is added. A class margin has both signs: its logistic
    function, in units of the spread of the reference, is what is multiplied. A weight of 0 puts an item last.
    """
    weight = np.maximum(weight, 0).astype(np.float32)
    if policy == "uncertainty":
        with np.errstate(divide="ignore"):
            return np.maximum(priority + np.log(weight), np.finfo(np.float32).min)
    if policy == "class_margin":
        new = _needed(reference.new, policy, "new vectors of the train pairs")
        spread = float(np.square(new - new.mean(axis=0)).sum(axis=1).mean()) or 1.0
        priority = (1 / (1 + np.exp(-np.clip(priority / spread, -60, 60)))).astype(np.float32)
    return priority * weight
