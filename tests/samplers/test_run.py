"""From a config to a run."""

from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, mixture, run

from genlab import compute
from genlab import config as presets
from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, UnknownNameError
from genlab.samplers.base import SamplerStack
from genlab.samplers.respaced import Respaced
from genlab.samplers.run import SamplerConfig, build, merge, sample_steps
from genlab.samplers.schedules import Karras
from genlab.samplers.solvers.heun import Heun


def test_defaults_are_edm_sampler() -> None:
    stack = build(SamplerConfig())
    assert stack == build({})
    assert stack == SamplerStack(solver=Heun(), schedule=Karras(num_steps=18))


@pytest.mark.parametrize("name", presets.preset_names("sampler"))
def test_preset_runs(name: str) -> None:
    """Those of chains of timesteps run on tests of their own, this model knows every level."""
    preset = presets.read_preset("sampler", name)
    if preset["schedule"]["name"] == "respaced":
        assert isinstance(build(preset).schedule, Respaced)
        return
    config = merge(preset, {"schedule": {"num_steps": 3}})
    x = run(config, condition=Condition(labels=torch.tensor([0, 1, 2, 0])))[-1].x
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (None, {}),
        ({"solver": {"S_churn": 2}}, {"solver": {"name": "heun", "S_noise": 1.1, "S_churn": 2}}),
        ({"solver": {"name": "euler"}}, {"solver": {"name": "euler"}}),
        ({"solver": "euler"}, {"solver": {"name": "euler"}}),
        ({"guidance": []}, {"guidance": []}),
        ({"guidance": {0: {"scale": 4.0}}}, {"guidance": [{"name": "cfg", "scale": 4.0}]}),
        ({"guidance": {"0": {"scale": 4.0}}}, {"guidance": [{"name": "cfg", "scale": 4.0}]}),
        ({"guidance": {"name": "cfg"}}, {"guidance": [{"name": "cfg"}]}),
    ],
    ids=str,
)
def test_merge(override: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    base = {
        "solver": {"name": "heun", "S_noise": 1.1},
        "guidance": [{"name": "cfg", "scale": 2.0}],
    }
    untouched = {key: value.copy() for key, value in base.items()}  # type: ignore[attr-defined]
    assert merge(base, override) == {**base, **expected}
    assert base == untouched


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solvr": "heun"}, "no key 'solvr'; did you mean 'solver'"),
        ({"solver": 3}, "must be a name or a mapping"),
        ({"solver": [{"name": "heun"}]}, "must be one mapping"),
        ({"solver": {"S_chrun": 3, "name": "heun"}}, "did you mean 'S_churn'"),
        ({"schedule": {"num_steps": 2.5}}, "must be a whole number, got 2.5"),
        ({"schedule": {"num_steps": "many"}}, "must be a whole number, got 'many'"),
        ({"schedule": {"num_steps": True}}, "must be a whole number, got True"),
        ({"schedule": {"rho": None}}, "must be a number, got None"),
        ({"guidance": ["cfg", 3]}, "must be a name or a mapping"),
        ({"guidance": {2: {"scale": 1}}}, "has 0 entries"),
        ({"guidance": [{"scale": 1}]}, "a guidance needs a name, one of cfg"),
    ],
    ids=str,
)
def test_wrong_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no solver 'huen'; did you mean 'heun'"):
        build({"solver": "huen"})


def test_text_numbers_are_numbers() -> None:
    """As they come from a command line."""
    stack = build({"schedule": {"num_steps": "7", "rho": "5e0"}})
    assert stack == SamplerStack(solver=Heun(), schedule=Karras(num_steps=7, rho=5.0))


def test_latents_are_the_first_draw_in_float32() -> None:
    stack = build({"schedule": {"num_steps": 2}})
    common: dict[str, Any] = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    own = list(sample_steps(stack, mixture(), noise=NoiseStream([4]), **common))
    latents = NoiseStream([4]).randn(SHAPE)
    given = list(sample_steps(stack, mixture(), noise=NoiseStream([9]), latents=latents, **common))
    assert torch.equal(own[-1].x, given[-1].x)
    with pytest.raises(ConfigError, match="latents must be images of shape"):
        sample_steps(stack, mixture(), noise=NoiseStream([4]), latents=latents[..., :1], **common)


def test_state_is_float64_where_there_is_float64() -> None:
    assert compute.widest("cpu") == compute.widest("cuda:1") == torch.float64
    assert compute.widest("mps") == torch.float32
