"""A linear softmax classifier of new vectors: the new model's own, or one fitted on the pairs.

Legend: N items, E new dim, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.types import F32, I64, Objects


@dataclass(frozen=True)
class Classifier:
    """A linear softmax classifier of new vectors: the new model's own, or one fitted on the pairs.

    weight: (C, E). bias: (C,). classes: (C,) str, the label of each row.
    """

    weight: F32
    bias: F32
    classes: NDArray[np.str_]

    @classmethod
    def of_class_numbers(cls, weight: F32, bias: F32) -> Classifier:
        """A classifier whose labels are the numbers of its rows, as those of the new model's own are."""
        return cls(weight, bias, np.arange(len(weight)).astype(str))

    def log_probabilities(self, vectors: F32) -> F32:
        """log p(class) (N, C) in nats, of vectors (N, E)."""
        logits: F32 = vectors @ self.weight.T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def rows(self, labels: Objects) -> I64:
        """The row of each label's class (N,): C for a class that it does not know, C + 1 where there is none."""
        count = len(self.weight)
        known = {str(label): row for row, label in enumerate(self.classes)}
        return np.array(
            [count + 1 if label is None else known.get(str(label), count) for label in labels.tolist()], np.int64
        )
