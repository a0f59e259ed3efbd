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
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.schedules.respaced import Respaced
from genlab.samplers.solvers.heun import Heun


def test_defaults_are_edm_sampler() -> None:
    assert Sampler.from_config({}) == Sampler(solver=Heun(), schedule=Karras(num_steps=18))


@pytest.mark.parametrize("name", presets.preset_names("sampler"))
def test_preset_runs(name: str) -> None:
    """Those of chains of timesteps and of CADS run on tests of their own.

    This model knows every level, and has no class embedding.
    """
    preset = presets.read_preset("sampler", name)
    if preset["schedule"]["name"] == "respaced":
        assert isinstance(Sampler.from_config(preset).schedule, Respaced)
        return
    if any(each["name"] == "cads" for each in preset["guidance"]):
        assert Sampler.from_config(preset).guidance[-1].outermost
        return
    few = Sampler.from_layers([("a", preset), ("b", {"schedule": {"num_steps": 4}})])
    x = run(few.config, condition=Condition(labels=torch.tensor([0, 1, 2, 0])))[-1].x
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
    before = str(base)
    merged = Sampler.from_layers([("the base", base), ("the override", override or {})])
    whole = {**base, "schedule": {"name": "karras", "num_steps": 18}, **expected}
    assert merged.config == whole
    assert str(base) == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solvr": "heun"}, "no setting 'solvr'; did you mean 'solver'"),
        ({"solver": 3}, "solver takes a mapping"),
        ({"solver": [{"name": "heun"}]}, "solver takes a mapping"),
        ({"solver": {"S_chrun": 3, "name": "heun"}}, "did you mean 'S_churn'"),
        ({"schedule": {"num_steps": 2.5}}, "num_steps takes a whole number, not 2.5"),
        ({"schedule": {"num_steps": "many"}}, "num_steps takes a whole number, not 'many'"),
        ({"schedule": {"num_steps": True}}, "num_steps takes a whole number, not a boolean"),
        ({"schedule": {"rho": None}}, "rho takes a number, not None"),
        ({"guidance": ["cfg", 3]}, "guidance takes a list of names or mappings"),
        ({"guidance": {2: {"scale": 1}}}, "has 0 entries"),
        ({"guidance": [{"scale": 1}]}, "a guidance needs a name, one of apg, auto, cads, cfg"),
    ],
    ids=str,
)
def test_wrong_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampler.from_config(config)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no solver 'huen'; did you mean 'heun'"):
        Sampler.from_config({"solver": "huen"})


def test_text_numbers_are_numbers() -> None:
    """As they come from a command line."""
    stack = Sampler.from_config({"schedule": {"num_steps": "7", "rho": "5e0"}})
    assert stack == Sampler(solver=Heun(), schedule=Karras(num_steps=7, rho=5.0))


def test_latents_are_the_first_draw_in_float32() -> None:
    stack = Sampler.from_config({"schedule": {"num_steps": 2}})
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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "heun, 18 steps"),
        (
            {"solver": {"S_churn": 40, "S_noise": 1.003}},
            "heun (S_churn 40, S_noise 1.003), 18 steps",
        ),
        ({"solver": {"name": "dpmpp-2s", "eta": 0}}, "dpmpp-2s (eta 0), 18 steps"),
        ({"solver": {"name": "dpmpp-2m", "sde": True}}, "dpmpp-2m (sde), 18 steps"),
        (
            {"guidance": [{"name": "cfg", "scale": 2, "when": {"sigma": [0.28, 2.9]}}]},
            "heun, 18 steps, cfg 2 (sigma 0.28 to 2.9)",
        ),
        ({"guidance": {"name": "cfg", "channels": 3}}, "heun, 18 steps, cfg 1 (channels 3)"),
        (
            {"guidance": [{"name": "classifier", "classifier": "a", "when": {"time": [0, 0.5]}}]},
            "heun, 18 steps, classifier 1 (time 0 to 0.5, classifier a)",
        ),
    ],
    ids=str,
)
def test_description(config: dict[str, Any], words: str) -> None:
    assert Sampler.from_config(config).describe() == words
