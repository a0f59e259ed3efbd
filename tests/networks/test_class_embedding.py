"""Looking classes up is the product of one-hot rows with the table, bit for bit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genlab.networks.layers.class_embedding import look_up, mix_rows

K = 5
LABELS = torch.tensor([3, -1, 0, 4, 3])


def one_hot(labels: torch.Tensor, *, null_row: bool) -> torch.Tensor:
    """With a column for the null class, or zeros for it."""
    rows = F.one_hot(labels.where(labels >= 0, K), K + 1)
    return rows if null_row else rows[:, :K]


@pytest.mark.parametrize("null_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_equals_the_product(null_row: bool, dtype: torch.dtype, autocast: bool) -> None:
    table = nn.Embedding(K + null_row, 7, dtype=dtype)
    rows = one_hot(LABELS, null_row=null_row).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = look_up(table, LABELS, K, null_row=null_row)
        expected = rows @ table.weight
        mixed = mix_rows(table, rows)
    assert found.dtype == expected.dtype == mixed.dtype
    assert torch.equal(found, expected)
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize("null_row", [False, True])
def test_gradients_go_to_the_rows_that_were_asked_for(null_row: bool) -> None:
    table = nn.Embedding(K + null_row, 7)
    look_up(table, LABELS, K, null_row=null_row).sum().backward()
    assert table.weight.grad is not None
    counts = one_hot(LABELS, null_row=null_row).sum(0)
    assert torch.equal(table.weight.grad, counts[:, None].expand(-1, 7).float())


def test_what_is_no_class_is_the_null_class() -> None:
    """Other devices do not check labels; a lookup beyond the table would stop them for good."""
    table = nn.Embedding(K + 1, 7)
    outside = torch.tensor([K, K + 1, 10**6, -7])
    assert torch.equal(look_up(table, outside, K, null_row=True), table.weight[K].expand(4, -1))
    assert not look_up(table, outside, K, null_row=False).any()
