"""Guidance named without a scale takes the model's, or is refused: in every way to say it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from genlab import DiffusionGenerator, config
from genlab.cli import main
from genlab.errors import ConfigError
from genlab.runs.config import SampleConfig
from genlab.samplers.guidance.classifier_free import ClassifierFree
from genlab.samplers.registries import GUIDANCE
from genlab.samplers.sampler import Sampler

OWN = {"guidance": [{"name": "cfg", "scale": 2.5}], "schedule": {"num_steps": 3}}
BY_CLASS = [name for name in GUIDANCE.in_order() if getattr(GUIDANCE[name], "by_class", False)]


@pytest.fixture(scope="module")
def guided(tiny_generator: DiffusionGenerator) -> DiffusionGenerator:
    return DiffusionGenerator(
        tiny_generator.network, tiny_generator.preconditioning, sampler=OWN, has_null_class=True
    )


def merged(generator: DiffusionGenerator, *settings: str) -> dict[str, Any]:
    """What the commands make of settings."""
    own = {"sampler": generator.sampler.config}
    return dict(config.load(SampleConfig, None, "sample", ["model=m", *settings], own).sampler)


def scales(sampler: Sampler) -> list[tuple[str, float]]:
    told = [(entry["name"], entry["scale"]) for entry in sampler.config["guidance"]]
    assert [scale for _, scale in told] == [vars(each)["scale"] for each in sampler.guidance]
    return told


def test_there_is_more_than_one_such_guidance() -> None:
    assert {"cfg", "apg", "fdg", "cfg-zero"} <= set(BY_CLASS)


@pytest.mark.parametrize("name", BY_CLASS)
@pytest.mark.parametrize(
    "setting",
    [
        "sampler.guidance={}",
        "sampler.guidance=[{}]",
        "sampler.guidance={{name: {}}}",
        "sampler.guidance=[{{name: {}}}]",
        "sampler.guidance.0={}",
        "sampler.guidance.0.name={}",
        "sampler={{guidance: {}}}",
    ],
)
def test_a_name_alone_takes_the_scale_of_the_model(
    guided: DiffusionGenerator, tiny_generator: DiffusionGenerator, name: str, setting: str
) -> None:
    if name == "cfg-zero":  # of models trained by flow matching
        guided = guided.changed(preconditioning={"name": "flow"})
        tiny_generator = tiny_generator.changed(preconditioning={"name": "flow"})
    said = merged(guided, setting.format(name))
    built = guided.build_sampler(said, over_own=False)
    assert scales(built) == [(name, 2.5)]
    if ".0" in setting:  # the other model has no guidance whose name could be changed
        return
    with pytest.raises(
        ConfigError, match=rf"'{name}' is named without a scale.*guidance\.0\.scale=2"
    ):
        tiny_generator.build_sampler(merged(tiny_generator, setting.format(name)), over_own=False)
    cured = merged(tiny_generator, setting.format(name), "sampler.guidance.0.scale=2")
    assert scales(tiny_generator.build_sampler(cured, over_own=False)) == [(name, 2)]


@pytest.mark.parametrize("said", ["cfg", ["cfg"], {"name": "cfg"}, [{"name": "cfg"}]])
def test_a_mapping_in_python_does_so_too(
    guided: DiffusionGenerator, tiny_generator: DiffusionGenerator, said: Any
) -> None:
    assert scales(guided.build_sampler({"guidance": said})) == [("cfg", 2.5)]
    with pytest.raises(ConfigError, match="named without a scale"):
        tiny_generator.build_sampler({"guidance": said})
    with pytest.raises(ConfigError, match="named without a scale"):
        DiffusionGenerator(
            tiny_generator.network, tiny_generator.preconditioning, has_null_class=True,
            sampler={"guidance": said},
        )  # fmt: skip
    strong = tiny_generator.build_sampler({"guidance": said}, guidance_scale=3)
    assert scales(strong) == [("cfg", 3)]


def test_the_images_are_those_of_the_scale(
    guided: DiffusionGenerator, tiny_generator: DiffusionGenerator
) -> None:
    named = guided.sample([0, 1], [0, 2], {"guidance": "cfg"})
    full = tiny_generator.sample([0, 1], [0, 2], OWN)
    plain = tiny_generator.sample([0, 1], [0, 2], {"schedule": {"num_steps": 3}})
    torch.testing.assert_close(named, full, rtol=0, atol=0)
    assert (named - plain).abs().max() > 1e-3


def test_one_that_says_its_scale_keeps_it(guided: DiffusionGenerator) -> None:
    said = {"guidance": [{"name": "cfg", "scale": 1}]}
    assert guided.build_sampler(said).config["guidance"] == said["guidance"]
    assert isinstance(guided.sampler, Sampler)
    objects = Sampler(
        solver=guided.sampler.solver, schedule=guided.sampler.schedule, guidance=(ClassifierFree(),)
    )
    again = guided.build_sampler(objects, num_steps=4)
    assert scales(again) == [("cfg", 1)]


def test_guidance_that_acts_by_default_keeps_its_default(guided: DiffusionGenerator) -> None:
    said = {"guidance": [{"name": "auto", "guide": "dit-fmnist-s"}]}
    sampler = Sampler.from_config(said).with_scales_of(guided.sampler)
    assert [vars(each)["scale"] for each in sampler.guidance] == [1.5]


def test_a_dry_run_shows_every_default(
    guided: DiffusionGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    assert main(["sample", model, "sampler.guidance=cfg", "--dry-run"]) == 0
    out = capsys.readouterr().out
    shown: Any = OmegaConf.to_container(OmegaConf.create(out))
    assert shown["sampler"]["guidance"] == [{"name": "cfg", "scale": 2.5}]
    lines = [line[4:] for line in out.splitlines() if line.startswith("#   ")]
    keys = {line.partition("=")[0] for line in lines}
    assert {
        "sampler.solver.S_churn", "sampler.schedule.rho", "sampler.guidance.0.rescale",
        "sampler.guidance.0.when.sigma", "sampler.guidance.0.weight.name",
    } <= keys  # fmt: skip
    before = guided.build_sampler(merged(guided, "sampler.guidance=cfg"), over_own=False)
    whole = guided.build_sampler(merged(guided, "sampler.guidance=cfg", *lines), over_own=False)
    assert whole == before


def test_guidance_without_end_is_refused(guided: DiffusionGenerator) -> None:
    many = [{"name": "cfg", "scale": 2}] * 1000
    with pytest.raises(ConfigError, match=r"guidance has 1,000 entries; name at most 16"):
        guided.build_sampler({"guidance": many})
