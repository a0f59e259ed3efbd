"""Class tables that are called, never read, so that an adapter on a table takes effect.

A table is a `torch.nn.Embedding`, one whose weight is computed (a parametrisation, spectral
normalisation), or a module that an adapter put in its place.

Legend: B batch, R rows of a table, D its features.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def look_up(
    table: nn.Module, labels: Int64[Tensor, " B"], num_classes: int, *, null_row: bool
) -> Float[Tensor, "B D"]:
    """The rows of classes; what lies outside 0 ... num_classes - 1 is the null class.

    Args:
        table: one row for each class.
        labels: classes, on the table's device.
        num_classes: rows that stand for classes.
        null_row: whether a row behind them is the null class, which else is all zeros.
    """
    has_class = (labels >= 0) & (labels < num_classes)
    if null_row:
        rows: Tensor = table(labels.where(has_class, num_classes))
    else:
        rows = table(labels.where(has_class, 0)).masked_fill(~has_class[:, None], 0)
    # As a product of class weights and table, which autocast takes in its own type (float64 not).
    device = labels.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    if on and rows.dtype != torch.float64:
        rows = rows.to(torch.get_autocast_dtype(device))
    return rows


def mix_rows(table: nn.Module, weights: Float[Tensor, "B R"]) -> Float[Tensor, "B D"]:
    """Mix the rows of a table by weights, one for each row."""
    rows: Tensor = table(torch.arange(weights.shape[1], device=weights.device))
    return weights @ rows
