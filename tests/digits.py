"""A small real input in the protocol of the FastFill and FCT papers: scikit-learn's digits, 1,797 images of 8 x 8.

The old network saw half of the classes (0-4) in training, the new one all ten; both saw only the training images. The
gallery is the held-out images, which are their own queries. The new network's classifier is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

OLD_DIM, NEW_DIM = 16, 64
NUM_TRAIN = 900
NUM_SHARDS = 4


@dataclass(frozen=True)
class DigitsInput:
    """Paths of the built input.

    ``gallery``: Parquet shards of id (int64), image (list of 64 float32 in [0, 1]), label (int64) and embedding
    (fixed_size_list of 16 float32). ``classifier``: .npz with weight (10, 64) and bias (10,) of the new network.
    ``old_weights`` and ``new_weights``: what `DigitsEmbedder` loads.
    """

    gallery: Path
    classifier: Path
    old_weights: Path
    new_weights: Path
    num_items: int


class DigitsEmbedder:
    """Features of one of the two networks: ``weights`` is a .safetensors file; reads the payload column ``image``."""

    def __init__(self, weights: str) -> None:
        state = load_file(weights)
        num_classes, dim = state["classifier.weight"].shape
        self._network = DigitsNetwork(dim, num_classes)
        self._network.load_state_dict(state)
        self._network.eval()

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> NDArray[np.float32]:
        images = np.stack([np.asarray(image, dtype=np.float32) for image in batch["image"]])
        return features(self._network, images)


class DigitsNetwork(nn.Module):
    """Two convolutions, then a feature layer of `dim`, then a linear classifier."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, dim)),
        )
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def features(network: DigitsNetwork, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 64) pixels -> (n, dim) float32."""
    with torch.inference_mode():
        vectors: NDArray[np.float32] = network.features(torch.from_numpy(images).reshape(-1, 1, 8, 8)).numpy()
    return vectors


def train(images: NDArray[np.float32], labels: NDArray[np.int64], dim: int, seed: int) -> DigitsNetwork:
    """A network for the classes in `labels` (0..c-1), the same ones up to rounding each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums would depend on it
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DigitsNetwork(dim, int(labels.max()) + 1)
            x, y = torch.from_numpy(images).reshape(-1, 1, 8, 8), torch.from_numpy(labels)
            optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
            for _ in range(15):
                for rows in torch.randperm(len(y)).split(64):
                    loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def build_digits(folder: str | Path) -> DigitsInput:
    """Train both networks and write the gallery; a second build writes the same up to rounding."""
    from sklearn.datasets import load_digits  # a second that no process spends which only embeds

    folder = Path(folder)
    built = DigitsInput(
        gallery=folder / "gallery",
        classifier=folder / "classifier.npz",
        old_weights=folder / "old.safetensors",
        new_weights=folder / "new.safetensors",
        num_items=1797 - NUM_TRAIN,
    )
    built.gallery.mkdir(parents=True, exist_ok=True)
    pixels, classes = load_digits(return_X_y=True)
    images, labels = (pixels / 16).astype(np.float32), classes.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    training, held_out = order[:NUM_TRAIN], np.sort(order[NUM_TRAIN:])
    half = training[labels[training] < 5]
    old = train(images[half], labels[half], OLD_DIM, seed=1)
    new = train(images[training], labels[training], NEW_DIM, seed=2)

    save_file(old.state_dict(), built.old_weights)
    save_file(new.state_dict(), built.new_weights)
    np.savez(
        built.classifier,
        weight=new.classifier.weight.detach().numpy(),
        bias=new.classifier.bias.detach().numpy(),
    )
    vectors = features(old, images[held_out])
    for shard, part in enumerate(np.array_split(np.arange(len(held_out)), NUM_SHARDS)):
        rows = held_out[part]
        table = pa.table(
            {
                "id": pa.array(rows),
                "image": pa.array(list(images[rows]), pa.list_(pa.float32())),
                "label": pa.array(labels[rows]),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors[part].ravel()), OLD_DIM),
            }
        )
        pq.write_table(table, built.gallery / f"shard-{shard}.parquet", row_group_size=64)
    return built
