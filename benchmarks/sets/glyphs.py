"""Two image galleries of letters and digits: an old network that lacked classes, and one that lacked a group."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import nn

from benchmarks.sets.base import BenchmarkSet, SplitSizes
from benchmarks.sets.glyph_images import (
    CHARACTERS,
    GALLERY_FAMILIES,
    TRAINING_FAMILIES,
    Glyphs,
    draw,
    find_faces,
)

BUILDER_VERSION = 1
OLD_DIM, NEW_DIM, SIDE_DIM = 64, 128, 32
OLD_WIDTH, NEW_WIDTH = 6, 12
OLD_EPOCHS, NEW_EPOCHS, BATCH = 4, 6, 128
PER_TRAINING_GLYPH, PER_GALLERY_GLYPH = 10, 8
HALF = len(CHARACTERS) // 2
# The biased set: the slanted images among the old network's, and in the gallery.
OLD_SLANTED_SHARE, GALLERY_SLANTED_SHARE = 0.015, 0.10
_SEED_OLD, _SEED_NEW, _SEED_OLD_BIASED, _SEED_SELECTION = 1, 2, 3, 4
SIZES = SplitSizes(train=4_000, calibration=1_000, audit=12_000)


class GlyphNetwork(nn.Module):
    """Three convolutions, a feature layer of `dim` without activation, then a linear classifier.

    Features keep their sign: what a ReLU would cut off tells classes apart that the network was not trained on.
    """

    def __init__(self, width: int, dim: int, num_classes: int) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.features = nn.Sequential(
            *block(1, width, 5, 2),
            *(*block(width, 2 * width, 3, 1), nn.MaxPool2d(2)),
            *(*block(2 * width, 4 * width, 3, 1), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(4 * width * 3 * 3, dim)),
        )
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def train(glyphs: Glyphs, width: int, dim: int, *, epochs: int, seed: int) -> GlyphNetwork:
    """A network for the classes 0..c-1 that `glyphs` shows: Adam, one cycle of the learning rate, cross-entropy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is no faster on two, and the order of sums is fixed
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = GlyphNetwork(width, dim, int(glyphs.labels.max()) + 1)
            labels = torch.from_numpy(glyphs.labels)
            batches = -(-len(labels) // BATCH)
            optimizer = torch.optim.Adam(network.parameters())
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * batches)
            for _ in range(epochs):
                for rows in torch.randperm(len(labels)).split(BATCH):
                    logits = network(_tensor(glyphs.images[rows.numpy()]))
                    # Smoothed labels draw each class together, which distances between features need.
                    loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.1)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def features(network: GlyphNetwork, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 28, 28) pixels -> (N, dim) float32."""
    with torch.inference_mode():
        parts = [network.features(part) for part in _tensor(images).split(1024)]
        vectors: NDArray[np.float32] = torch.cat(parts).numpy()
    return vectors


def _tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).float().div(255).sub(0.3).div(0.25).unsqueeze(1)


def build_glyphs() -> BenchmarkSet:
    """The papers' protocol: the old network saw half of the classes, 0-9A-U, the new one all 62.

    Group: "upright" or "slanted" (italic, oblique). Both networks' training images and the gallery show different font
    families. Side information: 32 principal components of the pixels, fitted on the training images.
    """
    training, gallery = _images()
    half = training.take(np.flatnonzero(training.labels < HALF))
    old = train(half, OLD_WIDTH, OLD_DIM, epochs=OLD_EPOCHS, seed=_SEED_OLD)
    told = f"trained on {len(half.labels)} images of the classes 0-9A-U"
    return _assemble("glyphs", old, told, gallery)


def build_glyphs_biased() -> BenchmarkSet:
    """As `build_glyphs`, but the old network saw all classes and hardly a slanted image: 1.5 % of its training images.

    Of the gallery 10 % are slanted, so that a method may well forget them. The new network is the same.
    """
    training, gallery = _images()
    rng = np.random.default_rng(_SEED_SELECTION)
    few = training.take(_with_share(training.slanted, OLD_SLANTED_SHARE, rng))
    old = train(few, OLD_WIDTH, OLD_DIM, epochs=OLD_EPOCHS, seed=_SEED_OLD_BIASED)
    told = f"trained on {len(few.labels)} images of which {int(few.slanted.sum())} are slanted"
    return _assemble("glyphs-biased", old, told, gallery.take(_with_share(gallery.slanted, GALLERY_SLANTED_SHARE, rng)))


def _assemble(name: str, old: GlyphNetwork, told: str, gallery: Glyphs) -> BenchmarkSet:
    training, _ = _images()
    new = _new_network()
    pca = PCA(SIDE_DIM, svd_solver="covariance_eigh").fit(_pixels(training))
    return BenchmarkSet(
        name=name,
        description=(
            f"{len(gallery.labels)} images of {len(CHARACTERS)} characters in fonts that no network saw; old: a CNN "
            f"with {OLD_DIM} dimensions {told}, new: a larger one with {NEW_DIM} trained on all {len(training.labels)}."
        ),
        metric="l2",
        old=features(old, gallery.images),
        new=features(new, gallery.images),
        labels=gallery.labels,
        sizes=SIZES,
        groups=np.where(gallery.slanted, "slanted", "upright").astype(object),
        classifier=(new.classifier.weight.detach().numpy(), new.classifier.bias.detach().numpy()),
        side=pca.transform(_pixels(gallery)).astype(np.float32),
    )


@cache
def _images() -> tuple[Glyphs, Glyphs]:
    """(training images, gallery images), which both sets share."""
    return (
        draw(find_faces(TRAINING_FAMILIES), PER_TRAINING_GLYPH, seed=1),
        draw(find_faces(GALLERY_FAMILIES), PER_GALLERY_GLYPH, seed=2),
    )


@cache
def _new_network() -> GlyphNetwork:
    return train(_images()[0], NEW_WIDTH, NEW_DIM, epochs=NEW_EPOCHS, seed=_SEED_NEW)


def _pixels(glyphs: Glyphs) -> NDArray[np.float32]:
    return glyphs.images.reshape(len(glyphs.images), -1).astype(np.float32) / np.float32(255)


def _with_share(slanted: NDArray[np.bool_], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows, ascending: all that are not slanted, and so many slanted ones drawn that they are `share` of the rows."""
    upright = np.flatnonzero(~slanted)
    drawn = rng.permutation(np.flatnonzero(slanted))[: round(len(upright) * share / (1 - share))]
    return np.sort(np.concatenate([upright, drawn]))
