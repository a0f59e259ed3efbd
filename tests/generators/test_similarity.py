"""How alike two models are along a trajectory."""

import copy

import pytest
import torch

from genlab import DiffusionGenerator
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError
from genlab.generators.analysis.similarity import BAND, Similarity, cosine, stitch_similarity
from genlab.samplers.stitching import acting

FEW = {"schedule": {"num_steps": 4}}


@pytest.fixture
def small(tiny_generator: DiffusionGenerator) -> DiffusionGenerator:
    network = copy.deepcopy(tiny_generator.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return DiffusionGenerator.from_metadata(network, tiny_generator.metadata())


def found(values: list[float]) -> Similarity:
    count = len(values)
    times = torch.linspace(1, 0, count).double()
    cosines = torch.tensor(values).double()[:, None].expand(count, 3)
    return Similarity(
        steps=tuple(range(count)), levels=80 * times + 0.002, times=times, cosines=cosines
    )


def test_the_cosine_is_that_of_the_noise_estimates() -> None:
    x, sigma = torch.randn(3, 1, 4, 4).double(), torch.tensor(2.0).double()
    a, b = torch.randn(2, 3, 1, 4, 4).double()
    one, other = ((x - each) / 2 for each in (a, b))
    expected = torch.stack(
        [p.flatten() @ q.flatten() / p.norm() / q.norm() for p, q in zip(one, other, strict=True)]
    )
    torch.testing.assert_close(cosine(x, sigma, a, b), expected)
    torch.testing.assert_close(cosine(x, sigma, a, a), torch.ones(3).double())


def test_a_model_is_like_itself_and_less_like_another(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    sampler = tiny_generator.build_sampler(FEW, guidance_scale=2.0)
    same = stitch_similarity(tiny_generator, tiny_generator, range(3), sampler=sampler)
    torch.testing.assert_close(same.cosines, torch.ones(4, 3).double())
    assert same.last_above(0.99) == 3
    assert same.fraction(3) == 1.0
    other = stitch_similarity(small, tiny_generator, range(3), sampler=sampler)
    assert other.mean[0] > 0.99, "both say that pure noise is noise"
    assert (other.cosines[1:] < 1).all()
    assert other.cosines[-1].max() < 0.999
    again = stitch_similarity(small, tiny_generator, range(3), sampler=sampler, batch_size=1)
    torch.testing.assert_close(again.cosines, other.cosines, rtol=0, atol=1e-4)


def test_it_asks_the_small_model_once_a_step_and_moves_nothing(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    before = small.denoiser.evaluations, tiny_generator.denoiser.evaluations
    seen: list[int] = []
    stitch_similarity(
        small, tiny_generator, range(5), sampler=tiny_generator.build_sampler(FEW), batch_size=2,
        on_batch=seen.append,
    )  # fmt: skip
    assert small.denoiser.evaluations - before[0] == 5 * 4
    assert tiny_generator.denoiser.evaluations - before[1] == 5 * 7
    assert seen == [2, 2, 1]


def test_the_last_step_of_the_first_stretch_counts() -> None:
    values = [1.0, 0.995, 0.98, 0.999, 0.5]
    assert found(values).last_above(0.99) == 1
    assert found(values).last_above(0.97) == 3
    assert found(values).last_above(0.4) == 4
    assert found(values[2:]).last_above(0.99) is None


def test_its_fraction_gives_the_small_model_those_steps(
    tiny_generator: DiffusionGenerator,
) -> None:
    for steps in (2, 5, 10):
        sampler = tiny_generator.build_sampler(num_steps=steps)
        alike = stitch_similarity(tiny_generator, tiny_generator, [0], sampler=sampler)
        for last in range(steps):
            stitch = [(tiny_generator, alike.fraction(last))]
            stitched = tiny_generator.build_sampler(num_steps=steps, stitch=stitch)
            grid = stitched.grid(tiny_generator.denoiser.noise_levels)
            takers = [
                acting(
                    stitched.stitch,
                    level=level,
                    index=index,
                    num_steps=steps,
                    noise_levels=grid.noise_levels,
                )
                for index, level in enumerate(grid.sigmas[:-1].tolist())
            ]
            assert takers == [0] * (last + 1) + [1] * (steps - last - 1)


def test_it_is_written_as_plain_numbers() -> None:
    told = found([1.0, 0.995, 0.98]).to_json(0.99)
    assert told["above"] == {"value": 0.99, "last_step": 1, "fraction": 0.75}
    assert told["quantiles"] == list(BAND)
    assert [step["step"] for step in told["steps"]] == [0, 1, 2]
    assert told["steps"][1]["mean"] == pytest.approx(0.995)
    nothing = found([0.5, 0.4]).to_json(0.99)["above"]
    assert nothing == {"value": 0.99, "last_step": None, "fraction": 0.0}


def test_models_that_cannot_be_compared_are_refused(
    tiny_generator: DiffusionGenerator, small: DiffusionGenerator
) -> None:
    narrow = DiffusionGenerator(tiny_generator.network, EDM(sigma_min=0.1))
    with pytest.raises(ConfigError, match=r"stitched model small would be asked .* below"):
        stitch_similarity(narrow, tiny_generator, [0])
    stitched = tiny_generator.build_sampler(FEW, stitch=[(small, 0.5)])
    with pytest.raises(ConfigError, match=r"leave sampler.stitch out"):
        stitch_similarity(small, tiny_generator, [0], sampler=stitched)
