"""Fitting an alignment on pairs, epoch by epoch. N pairs, D old, E new, S side dim, C classes.

``Fit`` knows no engine: the loop that drives it may store ``state()`` after any epoch and continue from it elsewhere.
Every random choice comes from ``seed`` and the epoch's number: continuing gives what never stopping would have given.
"""

from __future__ import annotations

import math

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastfill_ray.alignment import losses
from fastfill_ray.alignment.kernel import MAX_LANDMARKS, Kernel, kernel_ridge
from fastfill_ray.alignment.linear import Affine, Array, procrustes, ridge
from fastfill_ray.alignment.maps import PRESETS, Alignment, KernelMap, LinearMap, Method, PresetName, make_map
from fastfill_ray.alignment.pairs import TrainingPairs, check_pairs, pairs_digest, softmax_classifier
from fastfill_ray.alignment.uncertainty import MIN_HELD_OUT, ResidualModel, fit_residual_model
from fastfill_ray.errors import AlignmentFailed, CorruptFile
from fastfill_ray.ordering.streams import Stream, generator

LEARNING_RATE = 5e-4
WEIGHT_DECAY = 2.0**-15
# Weight of the discriminative loss (mu). Published: 1, with the new model's own classifier. What stands in for it gets
# less, because at 1 it swamps the squared error. On docstrings, 2,400 pairs, 64 -> 384 dims: a fitted head at 0.3
# against 1 gives R@1 14.8 against 9.2 %, CMC@1 53.2 against 52.4 %; InfoNCE at 0.1 against 1 gives R@1 16.2 against
# 17.0 %, but a rank correlation of the log-variance with the true error of 0.53 against 0.17.
GIVEN_WEIGHT, FITTED_WEIGHT, INFO_NCE_WEIGHT = 1.0, 0.3, 0.1
# The published schedule warms up for 5 of its 80 epochs.
WARM_UP = 1 / 16
# Few pairs get smaller batches: at three steps per epoch a map of 700 pairs had learnt next to nothing after 24 epochs.
# The paper's batch is left as published.
MIN_BATCHES, MIN_BATCH = 16, 32
HELD_OUT = 0.15
# Pairs that the model of residuals sees at most: with more it is no better. On docstrings and operations (ridge, two
# seeds) the rank correlation of the log-variance with the true error is 0.534 with these, 0.537 with all 5,500 or
# 8,000, and 0.522 with half as many.
MAX_HELD_OUT = 4096
FOLDS = 5


class Fit:
    """One alignment in the making.

    Raises:
        AlignmentFailed: pairs that no map can be fitted on: too few, not finite, all alike, or labels outside the
            classifier's classes.
    """

    def __init__(
        self, method: Method, preset: PresetName, pairs: TrainingPairs, *, seed: int, device: str = "cpu"
    ) -> None:
        check_pairs(pairs)
        old, new = pairs.old, pairs.new
        self.method: Method = method
        self.preset: PresetName = preset
        self._seed, self._device = seed, torch.device(device)
        self._dims = (old.shape[1], new.shape[1])
        self._old_scale, self._new_scale = _rms(old), _rms(new)
        self._old = (old / self._old_scale).astype(np.float32)
        self._new = (new / self._new_scale).astype(np.float32)
        side = None if method == "procrustes" else pairs.side  # a rotation has no place for it
        self._side_space = None if side is None else (side.shape[1], _rms(side))
        self._side = None if side is None else (side / _rms(side)).astype(np.float32)
        self._digest = pairs_digest(pairs, method, preset, seed)
        self.epoch = 0
        self._left_out: Array | None = None
        learnt = method in ("fastfill", "fct")
        self.epochs = PRESETS[preset].epochs if learnt else 1
        # Pairs that the model of residuals sees. Learnt maps do without them, but fastfill as published trains on all,
        # and so it does where a second opinion would have too few to be more than one constant. Maps in closed form are
        # fitted on all, and once more without each of these.
        shuffled = generator(seed, Stream.HELD_OUT).permutation(len(old))
        held = min(math.ceil(HELD_OUT * len(old)) if learnt else len(old), MAX_HELD_OUT)
        if method == "fastfill" and (preset == "paper" or held < MIN_HELD_OUT):
            held = 0
        self._held_out, self._train = np.sort(shuffled[:held]), np.sort(shuffled[held:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            side_dim = self._side_space and self._side_space[0]
            self._map = make_map(method, preset, *self._dims, side_dim, min(len(old), MAX_LANDMARKS))
            self._map = self._map.to(self._device)
        if learnt:
            self._x, self._y = self._tensor(self._old[self._train]), self._tensor(self._new[self._train])
            self._z = None if self._side is None else self._tensor(self._side[self._train])
            self._head, self._labels = self._classifier(pairs) if method == "fastfill" else (None, None)
            given = pairs.classifier is not None
            self._weight = INFO_NCE_WEIGHT if self._head is None else GIVEN_WEIGHT if given else FITTED_WEIGHT
            self._batch = PRESETS[preset].batch
            if preset != "paper":
                self._batch = max(MIN_BATCH, min(self._batch, len(self._x) // MIN_BATCHES))
            # One pass over the weights: operation by operation they took a third of an epoch.
            self._adam = torch.optim.Adam(
                self._map.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
            )

    def step(self) -> dict[str, float]:
        """Run one epoch and return its mean losses.

        Raises:
            AlignmentFailed: a loss that is not finite.
        """
        if self.epoch >= self.epochs:
            raise RuntimeError(f"all {self.epochs} epochs are done: call finish()")
        report = self._learn() if self.method in ("fastfill", "fct") else self._solve()
        self.epoch += 1
        return report

    def state(self) -> bytes:
        """Everything ``restore`` needs beside the pairs, as safetensors bytes."""
        tensors = {f"map.{name}": tensor for name, tensor in self._map.state_dict().items()}
        if self.method in ("fastfill", "fct"):
            for index, moments in self._adam.state_dict()["state"].items():
                tensors |= {f"adam.{index}.{name}": moment for name, moment in moments.items()}
        tensors["epoch"] = torch.tensor(self.epoch)
        tensors["digest"] = torch.frombuffer(bytearray(self._digest), dtype=torch.uint8)
        return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    def restore(self, state: bytes) -> None:
        """Continue from the bytes of ``state`` of a Fit with the same arguments.

        Raises:
            CorruptFile: bytes that ``state`` did not write.
            AlignmentFailed: the state of a Fit with another method, preset, seed or other pairs.
        """
        try:
            tensors = safetensors.torch.load(state)
            digest, epoch = bytes(tensors.pop("digest").tolist()), int(tensors.pop("epoch"))
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CorruptFile(
                f"not a training checkpoint of an alignment: {error}. Delete it to train anew."
            ) from error
        if digest != self._digest:
            raise AlignmentFailed(
                "the training checkpoint belongs to another method, preset or seed, or to other pairs (or the same "
                "ones in another order). Delete it to train anew."
            )
        weights = {name.removeprefix("map."): t for name, t in tensors.items() if name.startswith("map.")}
        moments: dict[int, dict[str, Tensor]] = {}
        for name in tensors.keys() - {f"map.{key}" for key in weights}:
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = tensors[name]
        try:
            self._map.load_state_dict(weights)
            if self.method in ("fastfill", "fct"):
                groups = self._adam.state_dict()["param_groups"]
                self._adam.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            raise CorruptFile(f"the training checkpoint does not fit the map: {error}. Delete it.") from error
        self.epoch = epoch

    def finish(self) -> Alignment:
        """The alignment, once every epoch is done; fits the model of residuals on what the map has not seen."""
        if self.epoch < self.epochs:
            raise RuntimeError(f"{self.epoch} of {self.epochs} epochs are done: call step()")
        mapping = self._map.to("cpu").eval()
        return Alignment(
            self.method,
            self.preset,
            old_scale=self._old_scale,
            new_scale=self._new_scale,
            mapping=mapping,
            residuals=self._residuals(mapping),
            dims=self._dims,
            side=self._side_space,
        )

    def _learn(self) -> dict[str, float]:
        batches = math.ceil(len(self._x) / self._batch)
        order = generator(self._seed, Stream.BATCHES, self.epoch).permutation(len(self._x))
        # BatchNorm's statistics are frozen from half way, as published.
        self._map.train(self.epoch < self.epochs // 2)
        sums = np.zeros(3)
        # Batches of nearly equal size: a short last one (even of one row) would upset BatchNorm.
        for number, chosen in enumerate(np.array_split(order, batches)):
            for group in self._adam.param_groups:
                group["lr"] = _learning_rate(self.epoch * batches + number, self.epochs * batches)
            rows = torch.from_numpy(chosen).to(self._device)
            loss, squared, discriminative = self._loss(rows)
            self._adam.zero_grad()
            loss.backward()
            self._adam.step()
            sums += np.array([loss.item(), squared.item(), discriminative.item()]) * len(chosen)
        report = dict(zip(("loss", "squared_error", "discriminative"), (sums / len(self._x)).tolist(), strict=True))
        if not math.isfinite(report["loss"]):
            raise AlignmentFailed(
                f"alignment.method {self.method}: the loss became {report['loss']} in epoch {self.epoch} of "
                f"{self.epochs}. Look for outliers among the pairs' vectors, or use alignment.method ridge."
            )
        return report

    def _loss(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's loss, and its mean squared error and classification (or InfoNCE) parts."""
        new = self._y[rows]
        aligned, log_variance = self._map(self._x[rows], None if self._z is None else self._z[rows])
        squared = losses.squared_error(aligned, new)
        if log_variance is None:
            return squared.mean(), squared.mean(), torch.zeros(())
        if self._head is not None and self._labels is not None:
            discriminative = losses.classification(self._head(aligned), self._labels[rows])
        else:
            discriminative = losses.pairwise_info_nce(aligned, new)
        loss = losses.weighed_by_uncertainty(squared + self._weight * discriminative, log_variance)
        return loss, squared.mean(), discriminative.mean()

    def _solve(self) -> dict[str, float]:
        if self.method == "kernel":
            smooth, self._left_out = self._kernel_ridge()
            self._map = KernelMap.of(smooth)
            squared = float(np.square(self._left_out - self._new[self._held_out]).mean())
            return {"loss": squared, "squared_error": squared, "strength": smooth.strength}
        fitted, some = self._closed_form(slice(None)), self._held_out
        self._map = LinearMap.of(fitted)
        squared = float(np.square(fitted(self._inputs(some)) - self._new[some]).mean())
        return {"loss": squared, "squared_error": squared, "strength": fitted.strength}

    def _kernel_ridge(self) -> tuple[Kernel, Array]:
        """The map of all pairs, and the scaled new vectors (R, E) of the held-out ones by maps without them."""
        return kernel_ridge(self._inputs(slice(None)), self._new, seed=self._seed, left_out=self._held_out)

    def _closed_form(self, rows: Array | slice) -> Affine:
        return (ridge if self.method == "ridge" else procrustes)(self._inputs(rows), self._new[rows])

    def _inputs(self, rows: Array | slice) -> Array:
        """What a linear map reads: scaled old vectors, side vectors behind them."""
        old = self._old[rows]
        return old if self._side is None else np.concatenate([old, self._side[rows]], axis=1)

    def _residuals(self, mapping: nn.Module) -> ResidualModel | None:
        held = self._held_out
        if len(held) == 0:
            return None
        if self.method in ("fastfill", "fct"):
            side = None if self._side is None else torch.from_numpy(self._side[held])
            with torch.inference_mode():
                aligned = mapping(torch.from_numpy(self._old[held]), side)[0].numpy()
        elif self.method == "kernel":
            left_out = self._left_out
            if left_out is None:  # restored from a checkpoint after the fit
                left_out = self._kernel_ridge()[1]
            aligned = left_out.astype(np.float32)
        else:
            aligned = np.empty_like(self._new[held])
            for fold in np.array_split(generator(self._seed, Stream.FOLDS).permutation(len(held)), FOLDS):
                rest = np.setdiff1d(np.arange(len(self._old)), held[fold])
                aligned[fold] = self._closed_form(rest)(self._inputs(held[fold]))
        return fit_residual_model(self._old[held], aligned, self._new[held])

    def _classifier(self, pairs: TrainingPairs) -> tuple[nn.Linear | None, Tensor | None]:
        """The frozen classifier, on scaled vectors, and each train pair's class; (None, None) if labels say nothing."""
        if pairs.labels is None:
            return None, None
        labels = pairs.labels[self._train]
        if pairs.classifier is not None:
            weight, bias = pairs.classifier.weight, pairs.classifier.bias
            weight = weight * self._new_scale  # it reads vectors in the new model's own units
        else:
            classes, labels = np.unique(labels, return_inverse=True)
            if len(classes) < 2 or 2 * len(classes) > len(labels):
                return None, None
            weight, bias = softmax_classifier(self._new[self._train], labels, len(classes))
        head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        head.load_state_dict({"weight": self._tensor(weight), "bias": self._tensor(bias)}, assign=True)
        return head.requires_grad_(False), torch.from_numpy(labels.astype(np.int64)).to(self._device)

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self._device)


def fit_alignment(method: Method, preset: PresetName, pairs: TrainingPairs, *, seed: int) -> Alignment:
    """An alignment, fitted without a stop.

    Raises:
        AlignmentFailed: as ``Fit``.
    """
    fit = Fit(method, preset, pairs, seed=seed)
    while fit.epoch < fit.epochs:
        fit.step()
    return fit.finish()


def _rms(vectors: Array) -> float:
    """Root mean square per dimension."""
    return math.sqrt(float(np.einsum("nd,nd->", vectors, vectors, dtype=np.float64)) / vectors.size)


def _learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    warm_up = WARM_UP * steps
    if step < warm_up:
        return LEARNING_RATE * (step + 1) / (warm_up + 1)
    return LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
