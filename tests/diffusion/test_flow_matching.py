"""Flow matching: paths, what a network's output means, and the loss."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import LARGEST, PATHS, Flow, FlowLoss, interval
from genlab.diffusion.losses import LossDraws
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import EDM, Preconditioning, from_config
from genlab.errors import ConfigError

T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
X1 = torch.rand(25, 1, 4, 4, dtype=torch.float64) * 2 - 1
X0 = torch.randn(25, 1, 4, 4, dtype=torch.float64)


def column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


class Oracle(nn.Module):
    """A network that knows what it should answer at the given times."""

    def __init__(self, path: str, prediction: str) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.path, self.prediction = PATHS[path], prediction
        self.inputs: list[Tensor] = []

    def embed_labels(self, labels: Tensor | None) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        self.inputs.append(x)
        point = self.path.at(t)
        return {
            "velocity": column(point.alpha_deriv) * X1 + column(point.std_deriv) * X0,
            "noise": X0,
            "score": -X0 / column(point.std),
        }[self.prediction]


@pytest.mark.parametrize("path", PATHS)
def test_paths_lead_from_noise_to_data(path: str) -> None:
    ends = PATHS[path].at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    small = 0.01 if path == "vp" else 1e-15
    assert ends.alpha.tolist() == pytest.approx([0, 1], abs=small)
    assert ends.std.tolist() == pytest.approx([1, 0], abs=small)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_and_inverse_are_right(path: str) -> None:
    t = T.clone().requires_grad_()
    point = PATHS[path].at(t)
    for value, derivative in ((point.alpha, point.alpha_deriv), (point.std, point.std_deriv)):
        [expected] = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative, expected)
    back = PATHS[path].of(PATHS[path].sigma(T))
    for ours, there in zip(back, PATHS[path].at(T), strict=True):
        torch.testing.assert_close(ours, there)


@pytest.mark.parametrize("path", PATHS)
def test_small_noise_is_told_accurately(path: str) -> None:
    sigma = torch.logspace(-9, -3, 7, dtype=torch.float64)
    point = PATHS[path].of(sigma)
    torch.testing.assert_close(point.std / point.alpha, sigma, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("path", "prediction"), list(itertools.product(PATHS, ["velocity", "noise", "score"]))
)
def test_the_right_output_gives_the_clean_image(path: str, prediction: str) -> None:
    oracle = Oracle(path, prediction)
    denoiser = PreconditionedDenoiser(
        oracle, Flow(path=path, prediction=prediction), num_classes=0, has_null_class=False
    )
    sigma = PATHS[path].sigma(T)
    x = X1 + column(sigma) * X0
    torch.testing.assert_close(denoiser(x, sigma, Condition()), X1)
    point = PATHS[path].at(T)
    torch.testing.assert_close(oracle.inputs[0], column(point.alpha) * X1 + column(point.std) * X0)


@pytest.mark.parametrize(
    ("path", "prediction", "weighting"),
    [
        *[(path, prediction, "none") for path in PATHS for prediction in ("velocity", "noise")],
        ("gvp", "score", "velocity"),
        ("linear", "noise", "likelihood"),
    ],
)
def test_the_loss_is_the_squared_error_of_the_output(
    path: str, prediction: str, weighting: str
) -> None:
    """An output that is off by a tenth everywhere; the weights are written out."""

    class Off(Oracle):
        def forward(self, x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
            return super().forward(x, t) + 0.1

    denoiser = PreconditionedDenoiser(
        Off(path, prediction),
        Flow(path=path, prediction=prediction),
        num_classes=0,
        has_null_class=False,
    )
    loss = FlowLoss(path=path, prediction=prediction, weighting=weighting)
    level = torch.linspace(0.1, 0.9, 25)
    terms = loss(denoiser, X1, Condition(), LossDraws(level=level, noise=X0))
    first, last = interval(path, prediction, training=True)
    p = PATHS[path].at((first + level * (last - first)).double())
    drift = p.alpha_deriv / p.alpha * p.std**2 - p.std * p.std_deriv  # SiT's "drift_var"
    factor: dict[str, Any] = {
        "none": 1.0,
        "velocity": (drift / p.std) ** 2,
        "likelihood": drift / p.std**2,
    }
    expected = 0.01 * torch.ones_like(p.t) * factor[weighting]
    if prediction == "score":
        expected = expected * p.std**2
    torch.testing.assert_close(terms.loss.mean((1, 2, 3)), expected, rtol=1e-6, atol=0)


def test_the_ends_of_the_path_do_no_harm() -> None:
    """A uniform number may be 0, and nearly 1: the loss there keeps its digits."""
    level = torch.tensor([0.0, 1e-7, 1 - 6e-8])
    denoiser = PreconditionedDenoiser(Flatterer(), Flow(), num_classes=0, has_null_class=False)
    draws = LossDraws(level=level, noise=X0[:3].float())
    terms = FlowLoss()(denoiser, X1[:3].float(), Condition(), draws)
    expected = (X1[:3].float() - X0[:3].float()).square()
    torch.testing.assert_close(terms.loss.float(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model", [Flow(prediction="noise"), Flow(path="gvp"), Discrete(), EDM()], ids=str
)
def test_the_loss_trains_only_its_own_model(model: Preconditioning) -> None:
    """The velocity's weight at a noise predictor's t = 0 would be that of an error over t^2."""
    denoiser = PreconditionedDenoiser(Flatterer(), model, num_classes=0, has_null_class=False)
    draws = LossDraws(level=torch.zeros(3), noise=X0[:3])
    with pytest.raises(ConfigError, match="make them agree or take another loss"):
        FlowLoss()(denoiser, X1[:3], Condition(), draws)


class Flatterer(Oracle):
    """Says that nothing moves."""

    def __init__(self) -> None:
        super().__init__("linear", "velocity")

    def forward(self, x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


def test_the_range_is_that_of_the_official_code() -> None:
    assert (Flow().sigma_min, Flow().sigma_max) == (0, LARGEST)
    noise = Flow(prediction="noise")
    assert (noise.sigma_min, noise.sigma_max) == pytest.approx((1 / 999, 999))
    assert Flow(path="vp").sigma_max == pytest.approx(152.17, abs=0.01)
    assert interval("vp", "velocity", training=True) == (0, 1 - 1e-5)


def test_config_comes_back() -> None:
    flow = Flow(path="gvp", prediction="score")
    assert flow.to_config() == {"name": "flow", "path": "gvp", "prediction": "score"}
    assert from_config(flow.to_config()) == flow
    for options, cure in (({"path": "gpv"}, "gvp"), ({"prediction": "v"}, "velocity")):
        with pytest.raises(ConfigError, match=cure):
            Flow(**options)
        with pytest.raises(ConfigError, match=cure):
            FlowLoss(**options)
    with pytest.raises(ConfigError, match="leave it out"):
        FlowLoss(weighting="velocity")
