import math

import torch

from fastfill_ray.alignment import losses


def test_the_weighed_loss_is_least_where_the_log_variance_is_the_log_of_the_loss() -> None:
    loss = torch.tensor([0.25])
    grid = torch.linspace(-3, 3, 601)
    values = torch.stack([losses.weighed_by_uncertainty(loss, s[None]) for s in grid])
    assert math.isclose(float(grid[values.argmin()]), math.log(0.25), abs_tol=0.01)


def test_squared_error_is_the_mean_over_dimensions() -> None:
    assert losses.squared_error(torch.zeros(2, 4), torch.tensor([[2.0, 0, 0, 0], [1, 1, 1, 1]])).tolist() == [1.0, 1.0]


def test_classification_smooths_the_labels_by_a_tenth() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = torch.log_softmax(logits, dim=1)[0]
    expected = -(0.9 * log_p[0] + 0.1 * log_p.mean())
    assert torch.allclose(losses.classification(logits, torch.tensor([0])), expected[None])


def test_info_nce_prefers_each_item_to_find_its_own_new_vector() -> None:
    new = torch.eye(4)
    right, wrong = losses.pairwise_info_nce(3 * new, new), losses.pairwise_info_nce(new.roll(1, 0), new)
    assert right.shape == (4,)
    assert bool((right < wrong).all())
