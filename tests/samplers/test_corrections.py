"""Rescaling and dynamic thresholding of guided estimates."""

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.preconditioning import EDM
from genlab.diffusion.spaces import SPACES, space_of
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.guidance.classifier_free import ClassifierFree
from genlab.samplers.guidance.corrections import thresholded

LABELS = torch.tensor([0, 2, 1])
X = torch.linspace(-2, 2, 3 * 8, dtype=torch.float64).reshape(3, *SHAPE).cos()
CONDITION = Condition(labels=LABELS)


@pytest.mark.parametrize("space", [*SPACES, "model"])
@pytest.mark.parametrize(
    "sigma",
    [torch.tensor(0.7).double(), torch.tensor([0.2, 1.0, 5.0]).double()],
    ids=["one", "each"],
)
def test_rescaling_is_the_formula_in_its_space(space: str, sigma: Tensor) -> None:
    model, phi = mixture(), 0.7
    where = space_of(space, model.noise_levels)
    with_class = where.express(model(X, sigma, CONDITION), X, sigma)
    plain = where.express(ClassifierFree(scale=4.0)(model)(X, sigma, CONDITION), X, sigma)
    ratio = with_class.std((1, 2, 3), keepdim=True) / plain.std((1, 2, 3), keepdim=True)
    expected = where.estimate(phi * ratio * plain + (1 - phi) * plain, X, sigma)
    guided = ClassifierFree(scale=4.0, rescale=phi, space=space)(model)
    torch.testing.assert_close(guided(X, sigma, CONDITION), expected, rtol=1e-9, atol=1e-9)


def test_spaces_differ() -> None:
    sigma = torch.tensor(0.7).double()
    guided = {
        space: ClassifierFree(scale=4.0, rescale=1.0, space=space)(mixture())(X, sigma, CONDITION)
        for space in SPACES
    }
    assert (guided["x0"] - guided["eps"]).abs().max() > 1e-3
    assert (guided["x0"] - guided["flow-v"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("levels", "space"),
    [
        (Discrete(), "eps"),
        (Discrete(prediction="v"), "v"),
        (Discrete(prediction="x0"), "x0"),
        (EDM(sigma_data=1.0), "v"),
    ],
    ids=["epsilon", "v", "x0", "edm"],
)
def test_the_model_s_own_space_is_what_its_network_predicts(
    levels: Discrete | EDM, space: str
) -> None:
    model = Listener(mixture())
    model.noise_levels = levels
    sigma = torch.tensor(0.7).double()
    own, named = (
        ClassifierFree(scale=4.0, rescale=0.7, space=name)(model)(X, sigma, CONDITION)
        for name in ("model", space)
    )
    torch.testing.assert_close(own, named, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("most", [1.2, float("inf")])
def test_thresholding_clamps_to_a_quantile_and_divides(ratio: float, most: float) -> None:
    x0 = torch.randn(4, 3, 9, 7) * torch.tensor([0.2, 1.0, 2.0, 5.0])[:, None, None, None]
    limit = x0.abs().flatten(1).quantile(ratio, dim=1).clamp(1, most)[:, None, None, None]
    ours = thresholded(x0, ratio, most)
    torch.testing.assert_close(ours, x0.clamp(-limit, limit) / limit)
    assert ours.abs().max() <= 1
    torch.testing.assert_close(ours[0], x0[0].clamp(-1, 1), msg="small images are left alone")


def test_thresholding_needs_no_guidance() -> None:
    """With scale 1, or where there is no class, the estimate is thresholded all the same."""
    model = Listener(mixture())
    sigma = torch.tensor(2.0).double()
    for condition in (CONDITION, Condition()):
        guided = ClassifierFree(threshold=0.7)(model)(4 * X, sigma, condition)
        torch.testing.assert_close(guided, thresholded(mixture()(4 * X, sigma, condition), 0.7))
    assert model.batches == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale": 1.5}, "rescale between 0 and 1"),
        ({"threshold": 0.0}, "threshold between 0 and 1"),
        ({"threshold": 0.9, "threshold_max": 0.5}, "threshold_max >= 1"),
        ({"threshold_max": 2.0}, "no effect without threshold"),
        ({"space": "epsilon"}, "no space 'epsilon'"),
    ],
    ids=str,
)
def test_impossible_corrections_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GUIDANCE.build("cfg", **options)
