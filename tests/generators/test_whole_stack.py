"""Everything at once, on every bundled diffusion model: guidance, a window, CADS and T-Stitch."""

from typing import Any

import pytest
import torch

import genlab
from genlab import DiffusionGenerator

SMALL = {"edm-fmnist": "dit-fmnist-s", "dit-fmnist": "dit-fmnist-s", "dit-fmnist-s": "edm-fmnist"}
STEPS = 6


def stack(small: str) -> dict[str, Any]:
    return {
        "solver": {"name": "euler"},
        "schedule": {"name": "karras", "num_steps": STEPS},
        "guidance": [
            {"name": "cfg", "scale": 3.0, "when": {"steps": [0.34, 1.0]}},
            {"name": "cads", "tau1": 0.4, "tau2": 0.9, "s": 0.1},
        ],
        "stitch": [{"model": small, "fraction": 0.5, "by": "step"}],
    }


@pytest.mark.parametrize(("name", "small"), SMALL.items())
def test_the_stack_runs_and_costs_the_sum_of_its_parts(name: str, small: str) -> None:
    model = genlab.load(name)
    assert isinstance(model, DiffusionGenerator)
    sampler = model.build_sampler(stack(small))
    [stitched] = sampler.parts["generator"]
    seeds, labels = [3, 8], [7, 1]
    before = model.denoiser.evaluations, stitched.denoiser.evaluations
    [batch] = model.stream(seeds, labels, sampler, batch_size=2)
    counted = [
        (after - earlier) // len(seeds)
        for after, earlier in zip(
            (model.denoiser.evaluations, stitched.denoiser.evaluations), before, strict=True
        )
    ]
    # Unguided steps 0 and 1, guided ones from 2 on; the small model takes steps 0 to 2.
    assert counted == [3 * 2, 1 + 1 + 2]
    assert batch.nfe == sum(counted)
    pairs = zip(seeds, labels, strict=True)
    alone = torch.cat([model.sample([seed], [label], sampler) for seed, label in pairs])
    torch.testing.assert_close(batch.images.clamp(-1, 1), alone, rtol=0, atol=2e-4)
    plain = model.sample(seeds, labels, {**stack(small), "guidance": [], "stitch": []})
    assert (alone - plain).abs().mean() > 1e-2
