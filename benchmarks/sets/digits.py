"""The protocol of the FastFill paper on scikit-learn's digits, with the networks of the tests."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from benchmarks.sets.base import BenchmarkSet, SplitSizes
from tests.digits import NEW_DIM, NUM_TRAIN, OLD_DIM, features, train

BUILDER_VERSION = 1
SIDE_DIM = 16


def build_digits() -> BenchmarkSet:
    """1,797 images of 8 x 8: 900 that both networks and the map are trained on, 897 held out as the gallery.

    The old network saw the training images of the classes 0-4 only (Jaeckle et al., ICLR 2023, section 5: half of the
    classes), the new one all of them.
    """
    pixels, classes = load_digits(return_X_y=True)
    images, labels = (pixels / 16).astype(np.float32), classes.astype(np.int64)
    training = np.random.default_rng(0).permutation(len(labels))[:NUM_TRAIN]
    half = training[labels[training] < 5]
    old = train(images[half], labels[half], OLD_DIM, seed=1)
    new = train(images[training], labels[training], NEW_DIM, seed=2)
    side = PCA(SIDE_DIM, svd_solver="full").fit(images[training]).transform(images)
    return BenchmarkSet(
        name="digits",
        description=(
            f"{len(labels)} digit images; old: a CNN with {OLD_DIM} dimensions trained on {len(half)} images of the "
            f"classes 0-4, new: one with {NEW_DIM} trained on {NUM_TRAIN} images of all ten."
        ),
        metric="l2",
        old=features(old, images),
        new=features(new, images),
        labels=labels,
        sizes=SplitSizes(NUM_TRAIN, 300, len(labels)),
        classifier=(new.classifier.weight.detach().numpy(), new.classifier.bias.detach().numpy()),
        side=side.astype(np.float32),
        train_rows=np.sort(training).astype(np.int64),
    )
