"""Noise streams: a sample's numbers depend on its seed alone."""

import pytest
import torch

from genlab.diffusion.noise import MAX_SEED, Noise, NoiseStream
from genlab.errors import ConfigError


@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_ignore_their_batch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    seeds = (7, 0, MAX_SEED, 7)
    batch = NoiseStream(seeds)
    for _ in range(2):  # streams move on together
        normal, uniform = batch.randn(shape, dtype), batch.rand(shape, dtype)
        assert normal.shape == uniform.shape == (4, *shape)
        assert normal.dtype == dtype
        assert torch.equal(normal[0], normal[3])
        assert (normal[0] - normal[1]).abs().max() > 0
        assert ((uniform >= 0) & (uniform < 1)).all()
    for i, seed in enumerate(seeds):
        alone = NoiseStream([seed])
        for _ in range(2):
            last = alone.randn(shape, dtype), alone.rand(shape, dtype)
        assert torch.equal(last[0][0], normal[i])
        assert torch.equal(last[1][0], uniform[i])


def test_stream_is_torchs_own() -> None:
    """The same numbers as anybody's `torch.Generator` with that seed, as official scripts draw."""
    expected = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(11))
    assert torch.equal(NoiseStream([11]).randn((3, 8, 8))[0], expected)


def test_callers_generators_are_advanced() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    stream = NoiseStream.from_generators(generators)
    assert isinstance(stream, Noise)
    assert len(stream) == 2
    assert torch.equal(stream.randn((5,)), NoiseStream([1, 2]).randn((5,)))
    assert not torch.equal(torch.randn(5, generator=generators[0]), NoiseStream([1]).randn((5,))[0])


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seeds must lie in"):
        NoiseStream([0, seed])


def test_no_samples_no_numbers() -> None:
    assert NoiseStream([]).randn((3, 2), torch.float64).shape == (0, 3, 2)


def test_a_fork_moves_nothing_and_is_moved_by_nothing() -> None:
    used, plain = NoiseStream([3, 4]), NoiseStream([3, 4])
    first = used.fork("cads").randn((5,))
    assert torch.equal(used.randn((5,)), plain.randn((5,)))
    assert torch.equal(used.fork("cads").randn((5,)), first), "whatever was drawn before"
    assert not torch.equal(used.fork("other").randn((5,)), first)
    assert not torch.equal(used.fork("cads").fork("cads").randn((5,)), first)
    assert not torch.equal(first, plain.randn((5,)))


def test_a_fork_belongs_to_its_sample() -> None:
    inside = NoiseStream([1, 2, 3]).fork("cads").randn((4,))
    assert torch.equal(inside[1:2], NoiseStream([2]).fork("cads").randn((4,)))


def test_a_callers_generator_is_forked_from_a_copy_of_its_state() -> None:
    generator = torch.Generator().manual_seed(7)
    stream = NoiseStream.from_generators([generator])
    before = generator.get_state()
    forked = stream.fork("cads").randn((4,))
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(forked, NoiseStream([7]).fork("cads").randn((4,))), "as of its seed"
    stream.randn((4,))
    assert torch.equal(stream.fork("cads").randn((4,)), forked)
    later = NoiseStream.from_generators([generator]).fork("cads").randn((4,))
    assert not torch.equal(later, forked), "a generator that was drawn from is another one"


def test_images_that_share_a_generator_have_forks_of_their_own() -> None:
    generator = torch.Generator().manual_seed(7)
    first, second = NoiseStream.from_generators([generator] * 2).fork("cads").randn((4,))
    assert not torch.equal(first, second)
