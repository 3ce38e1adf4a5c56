"""The maps from old to new vectors, and ``Alignment``, the trained artefact.

N rows, D old dim, E new dim, S dim of the side vectors: cheap features per item that say more than the old vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastfill_ray.alignment.kernel import Kernel
from fastfill_ray.alignment.linear import Affine, Array
from fastfill_ray.alignment.uncertainty import ResidualModel
from fastfill_ray.errors import CorruptFile, SpaceMismatch

Method = Literal["procrustes", "ridge", "kernel", "fct", "fastfill"]
# In the order of what they cost to apply.
METHODS: tuple[Method, ...] = get_args(Method)
PresetName = Literal["paper", "default"]

DIRECTION = "old->new"
# Rows mapped at once: bounds the memory of a call, at most 2,048 hidden units wide, to some tens of MB.
INFERENCE_ROWS = 4096
# Kernel values that a map holds at a time: 4 MiB.
_TILE_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Preset:
    """Size and schedule of a learnt map."""

    inner: int
    epochs: int
    batch: int


PRESETS: dict[PresetName, Preset] = {"paper": Preset(2048, 80, 1024), "default": Preset(512, 24, 256)}


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


class LearntMap(nn.Module):
    """FastFill's transformation (Jaeckle et al., ICLR 2023); without the head FCT's (Ramanujan et al., CVPR 2022).

    The first branch reads the old vector, the second one the side vector, or the old vector again where there is none,
    as published; a mixer joins them. The head reads the log-variance off h itself.
    """

    def __init__(self, old_dim: int, new_dim: int, inner: int, *, head: bool, side_dim: int | None = None) -> None:
        super().__init__()
        other = old_dim if side_dim is None else side_dim
        self.first = nn.Sequential(*_block(old_dim, 2 * old_dim), *_block(2 * old_dim, 2 * new_dim))
        self.second = nn.Sequential(*_block(other, 2 * other), *_block(2 * other, 2 * new_dim))
        self.mixer = nn.Sequential(*_block(4 * new_dim, inner), *_block(inner, inner), nn.Linear(inner, new_dim))
        self.head = nn.Linear(new_dim, 1) if head else None

    def forward(self, old: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Scaled old (N, D) and side vectors (N, S) -> scaled h (N, E), log-variance (N,) where there is a head."""
        aligned = self.mixer(torch.cat([self.first(old), self.second(old if side is None else side)], dim=1))
        return aligned, None if self.head is None else self.head(aligned).squeeze(1)


class LinearMap(nn.Module):
    """A closed-form map, kept as one affine layer of the old vector and, where one is read, the side vector."""

    def __init__(self, inputs: int, new_dim: int) -> None:
        super().__init__()
        self.affine = nn.Linear(inputs, new_dim)

    @classmethod
    def of(cls, fitted: Affine) -> LinearMap:
        made = cls(*fitted.weight.shape)
        with torch.no_grad():
            made.affine.weight.copy_(torch.from_numpy(fitted.weight.T.astype(np.float32)))
            made.affine.bias.copy_(torch.from_numpy(fitted.bias.astype(np.float32)))
        return made

    def forward(self, old: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Scaled old (N, D) and side vectors (N, S) -> scaled h (N, E), no log-variance."""
        return self.affine(old if side is None else torch.cat([old, side], dim=1)), None


class KernelMap(nn.Module):
    """Kernel ridge regression on M landmarks: h(x) = k(x, landmarks) @ weight + bias."""

    landmarks: Tensor
    gamma: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, landmarks: int, inputs: int, new_dim: int) -> None:
        super().__init__()
        self.register_buffer("landmarks", torch.zeros(landmarks, inputs))
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(landmarks, new_dim))
        self.register_buffer("bias", torch.zeros(new_dim))

    @classmethod
    def of(cls, fitted: Kernel) -> KernelMap:
        made = cls(len(fitted.landmarks), fitted.landmarks.shape[1], fitted.weight.shape[1])
        for name in ("landmarks", "gamma", "weight", "bias"):
            getattr(made, name).copy_(torch.from_numpy(np.asarray(getattr(fitted, name), np.float32)))
        return made

    def forward(self, old: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Scaled old (N, D) and side vectors (N, S) -> scaled h (N, E), no log-variance. For inference alone."""
        inputs = old if side is None else torch.cat([old, side], dim=1)
        # -gamma ||x - c||^2 = 2 gamma x.c - gamma ||c||^2 - gamma ||x||^2, in place in a tile that stays in the cache:
        # a pass over (N, M) per operation takes five times as long.
        twice = (2 * self.gamma * self.landmarks).T
        of_landmarks = -self.gamma * self.landmarks.square().sum(dim=1)
        of_inputs = -self.gamma * inputs.square().sum(dim=1, keepdim=True)
        rows = max(1, _TILE_NUMBERS // len(self.landmarks))
        tile = torch.empty(min(rows, len(inputs)), len(self.landmarks))  # kernel values (rows, M)
        aligned = torch.empty(len(inputs), self.weight.shape[1])
        for start in range(0, len(inputs), rows):
            part = slice(start, start + rows)
            kernel = torch.addmm(of_landmarks, inputs[part], twice, out=tile[: len(inputs[part])])
            kernel.add_(of_inputs[part]).clamp_(max=0).exp_()
            torch.addmm(self.bias, kernel, self.weight, out=aligned[part])
        return aligned, None


AnyMap = LearntMap | LinearMap | KernelMap


def make_map(
    method: Method, preset: PresetName, old_dim: int, new_dim: int, side_dim: int | None = None, landmarks: int = 0
) -> AnyMap:
    """An untrained map; its weights come from torch's global generator. `landmarks` is for ``kernel`` alone."""
    if method in ("fastfill", "fct"):
        return LearntMap(old_dim, new_dim, PRESETS[preset].inner, head=method == "fastfill", side_dim=side_dim)
    inputs = old_dim + (side_dim or 0)
    return KernelMap(landmarks, inputs, new_dim) if method == "kernel" else LinearMap(inputs, new_dim)


def _parts(mapping: nn.Module, residuals: nn.Module | None) -> nn.ModuleDict:
    return nn.ModuleDict({"map": mapping} | ({} if residuals is None else {"residuals": residuals}))


class Alignment:
    """h with its log-variance: maps old vectors into the new space. Immutable; calls are thread-safe."""

    def __init__(
        self,
        method: Method,
        preset: PresetName,
        *,
        old_scale: float,
        new_scale: float,
        mapping: AnyMap,
        residuals: ResidualModel | None,
        dims: tuple[int, int],
        side: tuple[int, float] | None = None,
    ) -> None:
        """Build from parts that belong together.

        Args:
            old_scale, new_scale: the rms per dimension of either space.
            residuals: None only if the map has a head; beside a head it is the second opinion.
            dims: (D, E).
            side: (S, their rms per dimension) where the map reads side vectors.
        """
        self.method: Method = method
        self.preset: PresetName = preset
        self.old_dim, self.new_dim = dims
        self._side = side
        self._old_scale, self._new_scale = old_scale, new_scale
        self._map, self._residuals = mapping, residuals
        self._parts = _parts(mapping, residuals).to("cpu").eval().requires_grad_(False)

    @property
    def side_dim(self) -> int | None:
        """S, None where the map reads no side vectors."""
        return None if self._side is None else self._side[0]

    def __call__(self, old: Array, side: Array | None = None) -> tuple[Array, Array]:
        """Map old vectors.

        Args:
            old: (N, D) finite floats in the old model's own units. A row that is not finite gives a row that is not.
            side: (N, S) finite floats, iff the map was fitted with side vectors; ``procrustes`` ignores them.

        Returns:
            h: (N, E) float32 in the new model's own units; log-variance: (N,) float32, the logarithm of the expected
            squared residual per dimension after both spaces are scaled to unit rms (for ``fastfill`` plus the
            classification loss, as trained). The same rows agree to rounding (1e-5), not to the bit: processors,
            threads and batches add in other orders.

        Raises:
            SpaceMismatch: rows of another dimension, side vectors that are missing or that the map does not read.
        """
        self._check(old, side)
        aligned = np.empty((len(old), self.new_dim), np.float32)
        log_variance = np.empty(len(old), np.float32)
        with torch.inference_mode():
            for start in range(0, len(old), INFERENCE_ROWS):
                rows = slice(start, start + INFERENCE_ROWS)
                scaled = _scaled(old[rows], self._old_scale)
                h, s = self._map(scaled, self._scaled_side(side, rows))
                if s is None and self._residuals is not None:
                    s = self._residuals(scaled, h)
                aligned[rows] = h.numpy() * np.float32(self._new_scale)
                log_variance[rows] = s.numpy()
        return aligned, log_variance

    def second_opinion(self, old: Array, side: Array | None = None, aligned: Array | None = None) -> Array:
        """The log-variance by the model of held-out residuals; the map's own one where there is no such model.

        Args:
            old, side: as for a call.
            aligned: (N, E) what a call with them returned, if it is at hand: spares mapping them again.

        Returns:
            (N,) float32, in the units of a call's log-variance, without any classification loss.

        Raises:
            SpaceMismatch: as for a call, and aligned vectors of another shape.
        """
        self._check(old, side)
        if self._residuals is None:
            return self(old, side)[1]
        aligned = self(old, side)[0] if aligned is None else aligned
        if aligned.shape != (len(old), self.new_dim):
            raise SpaceMismatch(f"aligned vectors are {aligned.shape}, expected {(len(old), self.new_dim)}.")
        log_variance = np.empty(len(old), np.float32)
        with torch.inference_mode():
            for start in range(0, len(old), INFERENCE_ROWS):
                rows = slice(start, start + INFERENCE_ROWS)
                h = _scaled(aligned[rows], self._new_scale)
                log_variance[rows] = self._residuals(_scaled(old[rows], self._old_scale), h).numpy()
        return log_variance

    def _check(self, old: Array, side: Array | None) -> None:
        """Raise SpaceMismatch unless old and side vectors are what the map was fitted on."""
        if old.ndim != 2 or old.shape[1] != self.old_dim:
            raise SpaceMismatch(f"the alignment maps old vectors of dim {self.old_dim}, found an array {old.shape}.")
        found = None if side is None else side.shape
        expected = None if self.side_dim is None else (len(old), self.side_dim)
        if found != expected and self.method != "procrustes":
            raise SpaceMismatch(
                f"the alignment was fitted with {f'side vectors {expected}' if expected else 'no side vectors'}, found "
                f"{found or 'none'}: read the gallery.side_column that it was fitted with, or fit it again."
            )

    def _scaled_side(self, side: Array | None, rows: slice) -> Tensor | None:
        return None if side is None or self._side is None else _scaled(side[rows], self._side[1])

    def save(self) -> tuple[bytes, dict[str, object]]:
        """The weights as safetensors bytes, and what alignment.json says beside them."""
        tensors = {name: tensor.contiguous() for name, tensor in self._parts.state_dict().items()}
        info: dict[str, object] = {
            "direction": DIRECTION,
            "method": self.method,
            "preset": self.preset,
            "old_dim": self.old_dim,
            "new_dim": self.new_dim,
            "old_scale": self._old_scale,
            "new_scale": self._new_scale,
        }
        if self._side is not None:
            info["side_dim"], info["side_scale"] = self._side
        return safetensors.torch.save(tensors), info

    @classmethod
    def load(cls, weights: bytes, info: Mapping[str, object]) -> Alignment:
        """Rebuild a saved alignment. ``info`` may hold further keys, such as the fingerprints of the spaces.

        Raises:
            SpaceMismatch: an alignment in another direction.
            CorruptFile: ``info`` or the tensors are not what ``save`` wrote together.
        """
        if info.get("direction") != DIRECTION:
            raise SpaceMismatch(f"alignment.json: direction is {info.get('direction')!r}, expected {DIRECTION!r}.")
        method, preset = info.get("method"), info.get("preset")
        # Artefacts of maps without side vectors, and all of earlier releases, lack the keys of `side`.
        with_side = info.get("side_dim") is not None
        spaces = ("old", "new", "side") if with_side else ("old", "new")
        dims = tuple(info.get(f"{space}_dim") for space in spaces)
        scales = tuple(info.get(f"{space}_scale") for space in spaces)
        if (
            method not in METHODS
            or preset not in PRESETS
            or not all(isinstance(d, int) and 0 < d < 2**20 for d in dims)
            or not all(isinstance(s, float) and 0.0 < s < float("inf") for s in scales)
            or (with_side and method == "procrustes")
        ):
            raise CorruptFile(
                f"alignment.json: method {method}, preset {preset}, dims {dims}, scales {scales} do not fit."
            )
        old_dim, new_dim, *side_dim = cast("tuple[int, ...]", dims)
        old_scale, new_scale, *side_scale = cast("tuple[float, ...]", scales)
        side = (side_dim[0], side_scale[0]) if with_side else None
        try:
            tensors = safetensors.torch.load(weights)
            # A map with a head may do without a second opinion.
            whole = method != "fastfill" or any(name.startswith("residuals.") for name in tensors)
            # On the meta device nothing is allocated before the tensors' shapes are known to fit.
            with torch.device("meta"):
                landmarks = len(tensors["map.landmarks"]) if method == "kernel" else 0
                mapping = make_map(method, preset, old_dim, new_dim, side[0] if side else None, landmarks)
                residuals = ResidualModel(old_dim, new_dim) if whole else None
            _parts(mapping, residuals).load_state_dict(tensors, strict=True, assign=True)
        except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(
                f"model.safetensors does not fit alignment.json ({method}, dims {dims}): {error}"
            ) from error
        wrong = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if wrong:
            raise CorruptFile(f"model.safetensors: tensor {wrong[0]} holds values that are not finite.")
        return cls(
            method,
            preset,
            old_scale=old_scale,
            new_scale=new_scale,
            mapping=mapping,
            residuals=residuals,
            dims=(old_dim, new_dim),
            side=side,
        )


def _scaled(vectors: Array, scale: float) -> Tensor:
    return torch.from_numpy((np.asarray(vectors, np.float64) / scale).astype(np.float32))
