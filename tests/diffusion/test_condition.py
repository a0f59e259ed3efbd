"""The condition of a batch: null class, stacking, and what acts on the class embedding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genlab.diffusion.condition import NULL_CLASS, Condition

LABELS = torch.tensor([2, 0, 1])
SOFT = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
EMBEDDING = torch.arange(12.0).reshape(3, 4)


def double(embedding: Tensor) -> Tensor:
    return 2 * embedding


def negate(embedding: Tensor) -> Tensor:
    return -embedding


def add_one(embedding: Tensor) -> Tensor:
    return embedding + 1


def test_null_forgets_the_class_and_what_acts_on_it() -> None:
    augment = torch.ones(3, 9)
    condition = Condition(labels=LABELS, augment_labels=augment).with_embedding_transform(double)
    null = condition.null()
    assert null.labels is not None
    assert null.labels.tolist() == [NULL_CLASS] * 3
    assert torch.equal(null.transform_embedding(EMBEDDING), EMBEDDING)
    assert null.augment_labels is augment
    soft = Condition(labels=SOFT).null().labels
    assert soft is not None
    assert torch.equal(soft, torch.zeros(2, 3))
    assert Condition().null() == Condition()


def test_transforms_act_in_their_order() -> None:
    condition = Condition(labels=LABELS)
    condition = condition.with_embedding_transform(double).with_embedding_transform(add_one)
    assert torch.equal(condition.transform_embedding(EMBEDDING), 2 * EMBEDDING + 1)
    plain = Condition().with_embedding_transform(double)
    assert plain == Condition()  # nothing to act on without classes


def test_cat_keeps_each_blocks_transform() -> None:
    """Rows of the null branch stay as they are beside transformed ones, and more may be stacked."""
    with_class = Condition(labels=LABELS).with_embedding_transform(double)
    both = Condition.cat([with_class, with_class.null()])
    assert both.labels is not None
    assert both.labels.tolist() == [2, 0, 1, -1, -1, -1]
    rows = torch.cat([EMBEDDING, EMBEDDING])
    expected = torch.cat([2 * EMBEDDING, EMBEDDING])
    assert torch.equal(both.transform_embedding(rows), expected)
    again = Condition.cat([both, Condition(labels=LABELS).with_embedding_transform(negate)])
    twice = again.transform_embedding(torch.cat([rows, EMBEDDING]))
    assert torch.equal(twice, torch.cat([expected, -EMBEDDING]))
    over = both.with_embedding_transform(add_one)
    assert torch.equal(over.transform_embedding(rows), expected + 1)


def test_cat_stacks_soft_and_augment_labels() -> None:
    one = Condition(labels=SOFT, augment_labels=torch.zeros(2, 9))
    two = replace(one, augment_labels=torch.ones(2, 9))
    both = Condition.cat([one, two])
    assert both.labels is not None
    assert both.augment_labels is not None
    assert torch.equal(both.labels, torch.cat([SOFT, SOFT]))
    assert both.augment_labels.mean() == 0.5
    assert Condition.cat([Condition(), Condition()]) == Condition()


def test_cat_refuses_halves_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="with and without labels"):
        Condition.cat([Condition(labels=LABELS), Condition()])
    with pytest.raises(ValueError, match="with and without augment_labels"):
        Condition.cat([Condition(augment_labels=torch.ones(3, 9)), Condition()])


def test_what_acts_on_the_null_class_survives_null() -> None:
    """And each row block keeps its own, however often branches are stacked."""
    plain = Condition(labels=LABELS)
    condition = plain.with_embedding_transform(double, null=negate)
    assert torch.equal(condition.transform_embedding(EMBEDDING), 2 * EMBEDDING)
    null = condition.null()
    assert torch.equal(null.transform_embedding(EMBEDDING), -EMBEDDING)
    assert torch.equal(null.null().transform_embedding(EMBEDDING), -EMBEDDING)
    over = condition.with_embedding_transform(add_one).null()
    assert torch.equal(over.transform_embedding(EMBEDDING), -EMBEDDING)
    after = condition.with_embedding_transform(add_one, null=add_one).null()
    assert torch.equal(after.transform_embedding(EMBEDDING), 1 - EMBEDDING)
    rows = torch.cat([EMBEDDING, EMBEDDING])
    both = Condition.cat([condition, plain])
    assert torch.equal(both.null().transform_embedding(rows), torch.cat([-EMBEDDING, EMBEDDING]))
