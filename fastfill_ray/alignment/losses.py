"""The training losses of an alignment, one value per pair. N pairs, E new dim, C classes; all tensors float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.07


def squared_error(aligned: Tensor, new: Tensor) -> Tensor:
    """mean_d (h_id - n_id)^2 of the scaled vectors (N, E): (N,)."""
    return (aligned - new).square().mean(dim=1)


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with label smoothing 0.1 of the new model's classifier on h: logits (N, C), labels (N,) -> (N,)."""
    return functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING, reduction="none")


def pairwise_info_nce(aligned: Tensor, new: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al., 2018) of h_i against every new vector of the batch, the own one being right: (N,).

    Stands in for the classification loss where nothing is labelled (the label-free case of the contrastive loss of
    Ricci et al., NeurIPS 2025). Cosine similarities at temperature 0.07.
    """
    logits = functional.normalize(aligned, dim=1) @ functional.normalize(new, dim=1).T / TEMPERATURE
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def weighed_by_uncertainty(loss: Tensor, log_variance: Tensor) -> Tensor:
    """mean_i [exp(-s_i) l_i / 2 + s_i / 2], least at s_i = log l_i (FastFill, Jaeckle et al., ICLR 2023): scalar."""
    return (0.5 * torch.exp(-log_variance) * loss + 0.5 * log_variance).mean()
