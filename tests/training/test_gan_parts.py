"""The parts of GAN training, each against what it says."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genlab.errors import ConfigError, GenLabError
from genlab.networks.conditional_gan import ConditionalDiscriminator
from genlab.training.objectives.base import Trouble
from genlab.training.objectives.gan.collapse import CollapseWarning, CollapseWatch
from genlab.training.objectives.gan.diffaugment import TRANSFORMATIONS, DiffAugment
from genlab.training.objectives.gan.losses import LOSSES, AdversarialLoss, feature_matching
from genlab.training.objectives.gan.objective import GanObjective, features, frozen
from genlab.training.objectives.gan.regularizers import (
    History,
    add_orthogonal_gradients,
    orthogonal_gradient,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LOSSES)
def test_an_undecided_discriminator_has_the_even_loss(name: str) -> None:
    loss: AdversarialLoss = LOSSES.build(name)
    zero = torch.zeros(1, 1)
    assert float(loss.of_reals(zero) + loss.of_fakes(zero)) == pytest.approx(loss.even)


def test_non_saturating_is_the_cross_entropy() -> None:
    scores = torch.randn(8, 1) * 3
    bce = nn.functional.binary_cross_entropy_with_logits
    smooth = LOSSES.build("non-saturating", label_smoothing=0.1)

    def expected(target: float) -> Tensor:
        return bce(scores, torch.full_like(scores, target), reduction="none")

    assert torch.allclose(smooth.of_reals(scores), expected(0.9), atol=1e-6)
    assert torch.allclose(smooth.of_fakes(scores), expected(0.0), atol=1e-6)  # one-sided
    assert torch.allclose(smooth.of_generator(scores), expected(1.0), atol=1e-6)


def test_label_smoothing_belongs_to_the_cross_entropy() -> None:
    with pytest.raises(ConfigError, match="no setting 'label_smoothing'"):
        GanObjective(loss={"name": "hinge", "label_smoothing": 0.1})


def test_feature_matching_is_nothing_for_equal_means() -> None:
    a = torch.randn(6, 4)
    assert feature_matching(a, a) == 0
    assert feature_matching(a.flip(0), a) < 1e-12  # only the means count
    assert float(feature_matching(a + 1, a)) == pytest.approx(4.0, rel=1e-5)


def test_features_are_what_the_last_layer_sees() -> None:
    network = ConditionalDiscriminator(8, 2, 1, channels=4)
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 1])
    seen = features(network, x, labels)
    of_class = (network.embedding(labels) * seen).sum(1, keepdim=True)
    assert torch.equal(network.linear(seen) + of_class, network(x, labels))
    assert not network.linear._forward_pre_hooks


def test_frozen_networks_pass_gradients_on() -> None:
    network = nn.Linear(3, 1)
    x = torch.randn(2, 3, requires_grad=True)
    with frozen(network):
        y = network(x).sum()
    y.backward()
    assert x.grad is not None
    assert network.weight.grad is None
    assert network.weight.requires_grad


@pytest.mark.parametrize("unit_rows", [False, True])
def test_orthogonal_gradients_are_half_of_the_penaltys(unit_rows: bool) -> None:
    weight = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    w = weight.flatten(1)
    gram = w @ w.T
    eye = torch.eye(4, dtype=torch.float64)
    residual = gram - eye if unit_rows else gram * (1 - eye)
    (true,) = torch.autograd.grad(residual.square().sum(), weight)
    ours = orthogonal_gradient(w.detach(), unit_rows=unit_rows)
    assert torch.allclose(ours, true.flatten(1) / 2)


def test_orthogonal_regularisation_makes_rows_orthogonal() -> None:
    network = nn.Linear(8, 4, bias=False)
    before = network.weight.norm(dim=1).detach()
    for _ in range(300):
        network.weight.grad = torch.zeros_like(network.weight)
        add_orthogonal_gradients(network, 0.1)
        with torch.no_grad():
            network.weight -= network.weight.grad
    gram = network.weight @ network.weight.T
    assert (gram - gram.diag().diag()).abs().max() < 1e-3
    assert (network.weight.norm(dim=1) > 0.3 * before).all()  # lengths are free
    kept = nn.Linear(8, 4)
    kept.weight.grad = torch.zeros_like(kept.weight)
    add_orthogonal_gradients(kept, 0.1, skip=list(kept.parameters()), unit_rows=True)
    assert kept.weight.grad.abs().max() == 0


def test_history_pulls_back() -> None:
    network = nn.Linear(2, 1, bias=False)
    history = History(network)
    values = [torch.tensor([[float(i), -float(i)]]) for i in range(5)]
    for value in values:
        network.weight.data.copy_(value)
        network.weight.grad = torch.zeros(1, 2)
        history.add_gradients(network, strength=0.5)
    mean = torch.stack(values).mean(0)
    assert torch.allclose(history.mean.view(1, 2), mean)
    pull = network.weight.grad
    assert pull is not None
    assert torch.allclose(pull, values[-1] - mean)  # 2 * 0.5 * distance


def test_history_calms_two_players() -> None:
    """min over x, max over y of x * y: plain gradient steps circle outwards."""

    def distance(strength: float) -> float:
        players = nn.ParameterList([torch.ones(1), torch.ones(1)])
        history = History(players)
        for _ in range(300):
            x, y = players
            x.grad, y.grad = y.detach().clone(), -x.detach().clone()
            history.add_gradients(players, strength)
            with torch.no_grad():
                for p in players:
                    p -= 0.1 * p.grad
        return math.hypot(*(float(p.detach()) for p in players))

    assert distance(0.0) > 2
    assert distance(0.5) < 0.5


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_augmentation_is_differentiable_and_repeatable(name: str) -> None:
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64) * 2 - 1
    augment = DiffAugment([name])
    once, again = augment(images, seeded()), augment(images, seeded())
    assert torch.equal(once, again)
    assert not torch.equal(once, augment(images, seeded(1)))
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, seeded()), images)


def test_each_image_has_draws_of_its_own() -> None:
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).expand(8, -1, -1, -1)
    out = DiffAugment()(images, seeded())
    assert len({tuple(row.flatten().tolist()) for row in out}) == 8


def test_cutout_cuts_squares_of_half_the_height() -> None:
    cut = TRANSFORMATIONS["cutout"](torch.ones(300, 1, 8, 8), seeded()) == 0
    areas = cut.flatten(1).sum(1)
    assert areas.max() == 16
    assert areas.min() == 4  # a centre in a corner leaves a quarter of it
    assert cut.any(0).all()


def test_translation_moves_by_an_eighth_at_most() -> None:
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1
    where = TRANSFORMATIONS["translation"](images, seeded())[:, 0].nonzero()[:, 1:] - 8
    assert where.min() == -2
    assert where.max() == 2


def test_color_keeps_the_picture() -> None:
    images = torch.rand(3, 1, 6, 6) * 2 - 1
    out = TRANSFORMATIONS["color"](images, seeded())
    for before, after in zip(images.flatten(1), out.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.9999


def test_unknown_transformations_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cutout'"):
        DiffAugment(["cutut"])


def watched(*losses: float) -> list[Trouble | None]:
    watch = CollapseWatch(loss=0.02, even=2.0, patience_kimg=4)
    return [
        watch(float(i), {"discriminator": loss, "generator": 1.0}) for i, loss in enumerate(losses)
    ]


def test_the_watch_gives_up_after_its_patience_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = watched(1.5, 0.01, 0.01, 0.0, 0.01, 0.01, 0.01)
        assert found[:5] == [None] * 5
        assert found[5] is not None
        assert found[5].kimg == 1
        assert watched(0.01, 0.01, 0.01, 0.5, 0.01, 0.01, 0.01) == [None] * 7


@pytest.mark.parametrize(
    ("name", "options"),
    [("hinge", {}), *(("non-saturating", {"label_smoothing": s}) for s in (0.0, 0.1, 0.5))],
)
def test_the_watch_knows_the_least_loss(name: str, options: dict[str, float]) -> None:
    objective = GanObjective(loss={"name": name, **options})
    judge: AdversarialLoss = LOSSES.build(name, **options)
    scores = torch.linspace(-30, 30, 6001)[:, None]
    least = float(judge.of_reals(scores).min() + judge.of_fakes(scores).min())
    assert judge.least == pytest.approx(least, abs=1e-5)
    watch = objective.watch()
    assert isinstance(watch, CollapseWatch)
    assert judge.least < watch.loss < judge.least + 0.02 * judge.even  # won, and not before


def test_the_watch_warns_once() -> None:
    with pytest.warns(CollapseWarning, match="the run ends if") as told:
        watched(0.01, 0.01, 0.01, 0.01)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GanObjective(discriminator_steps=0), "discriminator_steps >= 1, got 0"),
        (lambda: GanObjective(generator_images=0), "generator_images > 0"),
        (lambda: GanObjective(generator_ortho=-1e-4), "generator_ortho >= 0"),
        (lambda: GanObjective(collapse_kimg=-1), "collapse_kimg > 0"),
        (lambda: GanObjective(loss={"name": "hing"}), "did you mean 'hinge'"),
        (
            lambda: GanObjective(loss={"name": "non-saturating", "label_smoothing": 1}),
            "label_smoothing must lie between 0 and 1, got 1",
        ),
        (lambda: GanObjective(augment=["color", "cut"]), "cutout"),
    ],
)
def test_wrong_options_are_named(make: Callable[[], GanObjective], named: str) -> None:
    with pytest.raises(GenLabError, match=named):
        make()


def test_updates_of_the_discriminator_share_the_batch() -> None:
    objective = GanObjective(discriminator_steps=3)
    assert objective.phases == ("discriminator",) * 3 + ("generator",)
    rows = [list(range(12))[objective.rows(phase, 12)] for phase in range(4)]
    assert rows[0] + rows[1] + rows[2] == list(range(12))
    assert len(rows[3]) == 4
    with pytest.raises(ConfigError, match=r"10 images .* cannot be shared by 3 updates"):
        objective.rows(0, 10)
