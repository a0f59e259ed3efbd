"""From the text of a sampler to its use: it is made once for a run of any number of batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_extractor import TinyExtractor

from genlab import DiffusionGenerator
from genlab import config as configs
from genlab.cli import main
from genlab.eval.collect import collect
from genlab.eval.metrics.base import Need
from genlab.eval.samples import GeneratedImages
from genlab.samplers.base import SOLVERS
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.euler import Euler
from genlab.samplers.solvers.heun import Heun

TEXT = {"solver": {"name": "euler"}, "schedule": {"num_steps": 2}}
Counts = dict[str, int]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """How often samplers are made of text, and how often configurations are merged."""
    made: Counts = {"samplers": 0, "merges": 0, "solvers": 0}

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            made[name] += 1
            return call(*args, **options)

        return counted

    make = Sampler.from_layers.__func__  # type: ignore[attr-defined]  # of the class method
    monkeypatch.setattr(Sampler, "from_layers", classmethod(counting("samplers", make)))
    monkeypatch.setattr(configs, "fill", counting("merges", configs.fill))
    monkeypatch.setattr(SOLVERS, "build_named", counting("solvers", SOLVERS.build_named))
    return made


def test_a_run_of_four_batches_makes_its_sampler_once(
    tiny_generator: DiffusionGenerator, counts: Counts
) -> None:
    assert len(list(tiny_generator.stream(range(8), sampler=TEXT, batch_size=2))) == 4
    assert counts == {"samplers": 1, "merges": 1, "solvers": 1}


def test_the_models_own_sampler_is_there_already(
    tiny_generator: DiffusionGenerator, counts: Counts
) -> None:
    tiny_generator.sample([0])
    built = tiny_generator.build_sampler()
    tiny_generator.sample([0], sampler=built)
    assert counts == {"samplers": 0, "merges": 0, "solvers": 0}


def test_an_evaluation_of_four_batches_makes_its_sampler_once(
    tiny_generator: DiffusionGenerator, counts: Counts
) -> None:
    sampler = tiny_generator.build_sampler(TEXT)
    images = GeneratedImages(tiny_generator, range(8), [0] * 8, sampler)
    collect(images, TinyExtractor(), [Need("rows", "features")], batch_size=2)
    assert counts == {"samplers": 1, "merges": 1, "solvers": 1}


def test_the_command_makes_the_models_own_sampler_and_that_of_the_run(
    tiny_model: Path, tmp_path: Path, counts: Counts
) -> None:
    options = ["--seeds", "0-7", "--batch-size", "2", "--steps", "2", "-o", str(tmp_path / "out")]
    assert main(["sample", str(tiny_model), *options, "-q", "sampler.solver=euler"]) == 0
    # Loading the model makes its own. Merged are both, and twice the configuration of the command.
    assert counts == {"samplers": 2, "merges": 4, "solvers": 2}


def test_a_sampler_of_objects_draws_what_its_text_draws(
    tiny_generator: DiffusionGenerator,
) -> None:
    sampler = Sampler(solver=Euler(S_churn=2.0), schedule=Karras(num_steps=3, rho=5.0))
    assert sampler.config == {
        "solver": {"name": "euler", "S_churn": 2.0},
        "schedule": {"name": "karras", "num_steps": 3, "rho": 5.0},
        "guidance": [],
    }
    again = tiny_generator.build_sampler(sampler.config)
    assert again == sampler
    images = tiny_generator.sample(range(2), sampler=sampler)
    assert torch.equal(images, tiny_generator.sample(range(2), sampler=again))


def test_short_names_change_a_sampler_of_objects(tiny_generator: DiffusionGenerator) -> None:
    sampler = Sampler(solver=Heun(S_churn=2.0), schedule=Karras(num_steps=3))
    fewer = tiny_generator.build_sampler(sampler, num_steps=2, guidance_scale=3.0)
    assert fewer.solver == Heun(S_churn=2.0)
    assert fewer.describe() == "heun (S_churn 2), 2 steps, cfg 3"


def test_text_from_outside_is_not_interpolated(
    tiny_generator: DiffusionGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "heun")
    with pytest.raises(Exception, match="would be interpolated, which GenLab does not do"):
        tiny_generator.build_sampler({"solver": {"name": "${oc.env:SECRET}"}})
