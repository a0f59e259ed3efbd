"""What every guidance by two predictions promises, whatever its formula."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from ideal_cases import Listener
from test_autoguidance import Guide
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.flow import Flow
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.noise import NoiseStream
from genlab.samplers.base import SOLVERS
from genlab.samplers.guidance.base import GUIDANCE
from genlab.samplers.guidance.extrapolation import ExtrapolationOptions
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler

SHAPE = (1, 8, 8)
NAMES = [name for name in GUIDANCE if issubclass(GUIDANCE[name], ExtrapolationOptions)]
CORRECTED = {"rescale": 0.6, "threshold": 0.95, "weight": {"name": "power-cosine"}}
LABELS = [0, 2, 1, 0]


def model(spread: float = 1.0) -> Listener:
    """Three classes of images large enough for bands of frequencies, in the time of a flow."""
    numbers = torch.Generator().manual_seed(3)
    means = torch.randn(3, *SHAPE, generator=numbers, dtype=torch.float64)
    stds = spread * torch.tensor([0.5, 0.7, 0.9]).double()
    listener = Listener(GaussianMixtureDenoiser(torch.ones(3).double(), means, stds))
    listener.noise_levels = Flow()
    return listener


def entry(name: str, **options: Any) -> dict[str, Any]:
    guide = {"guide": Guide(model(1.5))} if name == "auto" else {}
    return {"name": name, "scale": 3.0, **guide, **options}


def run(guidance: dict[str, Any], denoiser: Denoiser, seeds: list[int], solver: str) -> Tensor:
    config = {
        "solver": solver,
        "schedule": {"num_steps": 6, "sigma_max": 20.0, "sigma_min": 0.01},
        "guidance": [guidance],
    }
    *_, last = sample_steps(
        Sampler.from_config(config),
        denoiser,
        noise=NoiseStream(seeds),
        condition=Condition(labels=torch.tensor([LABELS[seed] for seed in seeds])),
        image_shape=SHAPE,
        device="cpu",
    )
    return last.x


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp", "unipc"])
@pytest.mark.parametrize("name", NAMES)
def test_guided_steps_cost_two_predictions_and_others_one(name: str, solver: str) -> None:
    plain, guided = model(), model()
    options = entry(name, when={"steps": [0.0, 0.5]})
    run({"name": "cfg", "scale": 1.0}, plain, [0, 1, 2], solver)
    nfe = SOLVERS[solver]().nfe(6)
    assert nfe is not None
    assert plain.evaluations == 3 * nfe
    run(options, guided, [0, 1, 2], solver)
    half = 6 if solver == "heun" else 3
    both = guided.evaluations + (options["guide"].evaluations if name == "auto" else 0)
    assert both == plain.evaluations + 3 * half
    assert len(guided.batches) == len(plain.batches), "two predictions of one model are one batch"


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_ignores_its_batch(name: str) -> None:
    options = entry(name, **CORRECTED)
    inside = run(options, model(), [0, 1, 2, 3], "heun")
    alone = run(options, model(), [2], "heun")
    torch.testing.assert_close(inside[2:3], alone, rtol=0, atol=1e-10)
    without = run({"name": "cfg", "scale": 1.0}, model(), [2], "heun")
    assert (alone - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_state_is_kept(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 64, dtype=dtype).reshape(1, *SHAPE)
    condition = Condition(labels=torch.tensor([1]))
    options = entry(name, **CORRECTED)
    guided = GUIDANCE.build_named(options)(model())
    x0 = guided(x, torch.tensor(0.7).double(), condition)
    assert x0.dtype == dtype
    assert x0.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_when_wanted(name: str) -> None:
    x = torch.linspace(-2, 2, 64).double().reshape(1, *SHAPE).requires_grad_()
    guided = GUIDANCE.build_named(entry(name, rescale=0.5))(model())
    x0 = guided(x, torch.tensor(0.7).double(), Condition(labels=torch.tensor([1])))
    [gradient] = torch.autograd.grad(x0.sum(), x)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_says_what_it_is(name: str) -> None:
    options: Any = GUIDANCE[name]
    text = str(options.__doc__)
    for word in ("Choose it", "Source:", "ost"):
        assert word in text
    told = set(re.findall(r"^        (\w+): ", text, re.MULTILINE))
    fields = {field.name for field in dataclasses.fields(options)} - {"when"}
    assert fields <= told, "every option stands in the docstring"
