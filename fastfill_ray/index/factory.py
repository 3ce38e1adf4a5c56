"""What can be known about an ``index_factory`` string before there are vectors: a trial on a few made-up ones.

FAISS parses far more than can serve: some indexes need ids of their own, are built once for ever, cannot be stored, or
count differing bits. Each string is therefore used as a run would use it, in the small. Where training is dear, a
cheaper index of the same kind stands in: fewer lists, fewer iterations, no transform before it.
"""

from __future__ import annotations

import re
from typing import Any

import faiss
import numpy as np

from fastfill_ray.errors import ConfigError, CorruptFile
from fastfill_ray.index.ivf import coarse
from fastfill_ray.index.segment import (
    FAISS_METRIC,
    build_index,
    faiss_reason,
    load_index,
    one_thread,
    search_segment,
    serialise,
)
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.types import F32, Metric

# A trial's vectors lie in this many groups, far apart: even the coarsest code tells them from each other.
_GROUPS = 8
_TRIAL_ITEMS = 128
# A coarse quantiser may be a graph that needs 100 (NSG). With fewer vectors for each list, residuals would be nothing.
_TRIAL_LISTS, _TRIAL_TRAINING = 128, 1024
# Dims of what an additive quantiser codes, in a trial.
_ADDITIVE_DIM = 8
# OPQ trains a product quantiser of 8 bits.
_OPQ_CENTROIDS = 256
# Share of the way from the average item to the best one that the first hits must make up at least.
_LEAST_ORDER = 0.2


def check_factory(factory: str, dim: int, metric: Metric, num_training: int, key: str = "index.factory") -> None:
    """Refuse a factory string that FAISS cannot parse, train on that many vectors, add to, store or search with scores.

    Args:
        key: where the string is set, for the message.

    Raises:
        ConfigError: names the key, the string, what fails and what to use instead.
    """
    try:
        with one_thread():
            index = faiss.index_factory(dim, factory, FAISS_METRIC[metric])
            parts = _parts(index)
            fault = _unfit(index, metric) or _too_few(parts, num_training)
            if fault is None:
                fault = _trial(_stand_in(factory, parts), metric)
    except RuntimeError as error:
        fault = f"{faiss_reason(error)}. A faiss.index_factory string is expected, such as Flat or IVF1024,Flat"
    except CorruptFile as error:
        why = error if error.__cause__ is None else faiss_reason(error.__cause__)
        fault = f"FAISS cannot read back what it stores of it ({why}). Use Flat, IVF, HNSW, PQ or SQ"
    if fault is not None:
        raise ConfigError(f"{key} {factory!r} cannot be used with dim {dim} and metric {metric}: {fault}.")


def _parts(index: faiss.Index, *, with_quantizers: bool = True) -> list[Any]:
    """The index, what it is made of, and the transforms before it; the outermost first."""
    index = faiss.downcast_index(index)
    parts: list[Any] = [index]
    inner: list[faiss.Index] = []
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        parts += [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
        inner = [index.index]
    elif isinstance(index, faiss.IndexRefine):
        inner = [index.base_index, index.refine_index]
    elif isinstance(index, faiss.IndexIDMap):
        inner = [index.index]
    elif isinstance(index, faiss.IndexHNSW):
        inner = [index.storage]
    elif isinstance(index, faiss.IndexIVF) and with_quantizers:
        inner = [index.quantizer]
    elif isinstance(index, faiss.Index2Layer) and with_quantizers:
        level: Any = index.q1  # its stubs take it for another class
        inner = [level.quantizer]
    return [*parts, *(part for each in inner for part in _parts(each, with_quantizers=with_quantizers))]


def _unfit(index: faiss.Index, metric: Metric) -> str | None:
    """What a trial could not tell, or not in words that help."""
    parts = _parts(index, with_quantizers=False)
    if any(isinstance(part, faiss.IndexIDMap) for part in parts):
        return "an IDMap wants ids of its own, and ids here are row numbers. Leave IDMap out"
    if any(isinstance(part, faiss.IndexLSH) for part in parts):
        return "LSH counts the bits that differ, which is no score. Use PQ, SQ or RaBitQ for small codes"
    if any(isinstance(part, faiss.IndexNSG) for part in parts):
        return "an NSG graph needs 100 items and more, and a segment may have fewer. Use HNSW"
    if any(isinstance(part, faiss.Index) and part.metric_type != FAISS_METRIC[metric] for part in parts):
        return "FAISS builds it for L2 whatever the metric is. Use Flat, IVF, or HNSW with Flat or SQ codes"
    if any(_is_direct(part) for part in parts):
        return "direct codes keep whole numbers only, and vectors are fractions. Use SQ8, which fits its range to them"
    if any(isinstance(part, faiss.PCAMatrix) and part.d_out > part.d_in for part in parts):
        return "PCA cannot make more dims than there are. Use fewer"
    return None


def _is_direct(part: Any) -> bool:
    codes = getattr(part, "sq", None)
    return codes is not None and codes.qtype in (
        faiss.ScalarQuantizer.QT_8bit_direct,
        faiss.ScalarQuantizer.QT_8bit_direct_signed,
    )


def _too_few(parts: list[Any], num_training: int) -> str | None:
    for part in parts:
        needed, what = _needed(part)
        if needed > num_training:
            return (
                f"it has {needed} {what}, but there are {num_training} vectors of the pairs to train them on. "
                "Use fewer of them, raise pairs.count, or use Flat"
            )
    return None


def _needed(part: Any) -> tuple[int, str]:
    """The most that one step of training a part needs, each of them a vector, and what it is."""
    if isinstance(part, faiss.OPQMatrix):
        return _OPQ_CENTROIDS, "centroids (OPQ)"
    if isinstance(part, faiss.PCAMatrix) or (isinstance(part, faiss.ITQTransform) and part.do_pca):
        return part.d_out, "principal components"
    codes: tuple[int, str] = (0, "centroids")
    if (product := getattr(part, "pq", None)) is not None:
        codes = (product.ksub, "centroids")
    additive = _additive(part)
    if isinstance(additive, faiss.ResidualQuantizer | faiss.ProductResidualQuantizer):  # LSQ needs no more than one
        centroids = 1 << max(faiss.vector_to_array(additive.nbits).tolist())
        codes = max((centroids, "centroids"), (_split_dim(additive), "principal components (RQ)"))
    if isinstance(part, faiss.IndexIVF) and not isinstance(_quantizer(part), faiss.MultiIndexQuantizer):
        return max((part.nlist, "lists"), codes)
    return codes


def _quantizer(index: Any) -> Any:
    return faiss.downcast_index(index.quantizer)


def _additive(part: Any) -> Any:
    """The additive quantiser (RQ, LSQ, PRQ, PLSQ) that makes a part's codes; None if it is of another kind."""
    return next((found for name in ("rq", "lsq", "prq", "plsq") if (found := getattr(part, name, None))), None)


def _split_dim(additive: Any) -> int:
    """Dims of each part of a vector that an additive quantiser codes by itself."""
    return int(additive.d // getattr(additive, "nsplits", 1))


def _stand_in(factory: str, parts: list[Any]) -> faiss.Index:
    """An index of the same kind that is trained in a moment: no transform before it, few lists, short iterations."""
    transforms = [part for part in parts if isinstance(part, faiss.VectorTransform)]
    dim = transforms[-1].d_out if transforms else parts[0].d
    for additive in filter(None, map(_additive, parts)):  # they take any dim, and their time grows with its square
        dim = min(dim, _ADDITIVE_DIM * (additive.d // _split_dim(additive)))
    inner = ",".join(factory.split(",")[len(transforms) :])
    inner = re.sub(r"\bIVF(\d+)", lambda match: f"IVF{min(int(match[1]), _TRIAL_LISTS)}", inner)
    inner = re.sub(r"\b(RQ|LSQ)\d+x\d+(_\d+x\d+)*", r"\g<1>2x4", inner)
    inner = re.sub(r"\bP(RQ|LSQ)(\d+)x\d+x\d+", r"P\1\g<2>x2x4", inner)
    index = faiss.index_factory(dim, inner, parts[0].metric_type)
    for part in _parts(index):
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False
        for trained in (part, getattr(part, "pq", None), getattr(part, "refine_pq", None), *_additives(part)):
            if hasattr(trained, "cp"):
                trained.cp.niter = 1
                trained.cp.min_points_per_centroid = 1  # or FAISS prints that the trial has few vectors
    return index


def _additives(part: Any) -> list[Any]:
    """The additive quantiser of a part, and those that it is made of."""
    additive = _additive(part)
    library: Any = faiss  # its stubs lack the cast
    subs = [additive.subquantizer(i) for i in range(getattr(additive, "nsplits", 0))]
    return [additive, *map(library.downcast_AdditiveQuantizer, subs)]


def _trial(index: faiss.Index, metric: Metric) -> str | None:
    """Train, store, add, store, read and search, as a run does; what is wrong with the hits, None if nothing is."""
    rows = max(_TRIAL_TRAINING, *(_needed(part)[0] for part in _parts(index)))
    vectors = _grouped(rows, index.d)
    vectors = unit_rows(vectors) if metric == "cosine" else vectors
    index.train(vectors)
    template = serialise(index)
    items = vectors[:_TRIAL_ITEMS]
    for count in (1, len(items)):  # the smallest segment that there can be, and one with an order
        built = load_index(
            build_index(template, items[:count], metric), dim=index.d, metric=metric, rows=count, name="a trial"
        )
        scores, hits = search_segment(built, items, min(count, 10), metric, coarse(built, items))
    found = hits[:, 0] >= 0
    if not np.isfinite(scores[found, 0]).all() or _order(items, hits[:, 0], metric) < _LEAST_ORDER:
        return "in a trial its first hits were no better than any item. Use Flat, IVF, HNSW, PQ or SQ8"
    return None


def _grouped(rows: int, dim: int) -> F32:
    """(rows, dim) vectors in groups, in turn: centres of length sqrt(dim), each vector a quarter of that beside one."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((_GROUPS, dim))
    noise = random.standard_normal((rows, dim)) / 4
    return np.ascontiguousarray(centres[np.arange(rows) % _GROUPS] + noise, np.float32)


def _order(items: F32, first: np.ndarray, metric: Metric) -> float:
    """Where the first hits' true similarity lies between the average item (0) and the best one (1)."""
    true = items @ items.T
    if metric == "l2":
        norms = np.diag(true)
        true = 2 * true - norms[:, None] - norms[None, :]
    average, best = true.mean(), true.max(axis=1).mean()
    hit = np.where(first >= 0, true[np.arange(len(items)), first], average).mean()
    return float((hit - average) / (best - average))
