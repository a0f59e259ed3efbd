"""A tiny real network behind each preconditioning."""

from typing import Any

import pytest
import torch

from genlab.diffusion.condition import Condition
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import PRECONDITIONINGS
from genlab.networks import SongUNet

NAMES = list(PRECONDITIONINGS)
LABELS = torch.tensor([0, 2])
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tiny(
    name: str, label_dim: int = 3, dtype: torch.dtype = torch.float32
) -> PreconditionedDenoiser:
    network: Any = SongUNet(
        img_resolution=8,
        in_channels=1,
        out_channels=2 if name == "iddpm" else 1,
        label_dim=label_dim,
        model_channels=16,
        channel_mult=[1],
        num_blocks=1,
        attn_resolutions=[],
    )
    for parameter in network.parameters():  # no branch is silent, as it is at initialisation
        torch.nn.init.normal_(parameter, std=0.1)
    return PreconditionedDenoiser(
        network.to(dtype=dtype).eval(),
        PRECONDITIONINGS[name](),
        num_classes=label_dim,
        has_null_class=label_dim > 0,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_estimate_has_dtype_of_the_images(name: str, dtype: torch.dtype) -> None:
    with torch.no_grad():
        x0 = tiny(name)(X.to(dtype), torch.tensor(0.5).double(), Condition(labels=LABELS))
    assert (x0.dtype, x0.shape) == (dtype, X.shape)
    assert x0.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_noise_level_of_each_sample(name: str) -> None:
    """A batch of two noise levels is the two samples by themselves."""
    denoiser, sigma = tiny(name), torch.tensor([0.3, 7.0]).double()
    with torch.no_grad():
        both = denoiser(X, sigma, Condition(labels=LABELS))
        for i in range(2):
            alone = denoiser(X[i : i + 1], sigma[i], Condition(labels=LABELS[i : i + 1]))
            torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    assert denoiser.evaluations == 4


@pytest.mark.parametrize("name", NAMES)
def test_small_noise_leaves_images_alone(name: str) -> None:
    denoiser = tiny(name)
    sigma = max(denoiser.sigma_min, 1e-3)
    with torch.no_grad():
        x0 = denoiser(X, torch.tensor(sigma), Condition(labels=LABELS))
    assert (x0 - X).abs().max() < 20 * sigma


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_images_and_parameters(name: str) -> None:
    denoiser, x = tiny(name), X.clone().requires_grad_()
    denoiser(x, torch.tensor(1.5), Condition(labels=LABELS)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in denoiser.network.parameters())


def test_labels_and_their_embedding_count() -> None:
    denoiser, sigma = tiny("edm"), torch.tensor(2.0)
    condition = Condition(labels=LABELS)
    halved = condition.with_embedding_transform(lambda embedding: 0.5 * embedding)
    with torch.no_grad():
        one_hot = torch.nn.functional.one_hot(LABELS, 3).float()
        plain, soft, null, none, less = (
            denoiser(X, sigma, c)
            for c in (
                condition,
                Condition(labels=one_hot),
                condition.null(),
                Condition(),
                halved,
            )
        )
    torch.testing.assert_close(soft, plain)
    torch.testing.assert_close(none, null)
    assert (plain - null).abs().max() > 1e-4
    assert (plain - less).abs().max() > 1e-4


def test_unconditional_network() -> None:
    denoiser = tiny("edm", label_dim=0)
    with torch.no_grad():
        assert denoiser(X, torch.tensor(2.0), Condition()).isfinite().all()
    assert (denoiser.num_classes, denoiser.has_null_class) == (0, False)


def test_network_computes_in_its_own_dtype() -> None:
    """In bfloat16 about 2 digits stay, yet the estimate comes back in float64."""
    torch.manual_seed(3)
    exact = tiny("edm")
    torch.manual_seed(3)
    rough = tiny("edm", dtype=torch.bfloat16)
    sigma, condition = torch.tensor(0.5), Condition(labels=LABELS)
    with torch.no_grad():
        a, b = exact(X, sigma, condition), rough(X, sigma, condition)
    assert b.dtype == torch.float64
    assert 0 < (a - b).norm() < 0.05 * a.norm()


def test_wrapped_network_is_called_through_its_wrapper() -> None:
    """As data-parallel training wraps it: the wrapper's forward, the inner network's labels."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *args: object) -> object:
            self.calls += 1
            return self.module(*args)

    denoiser = tiny("edm")
    with torch.no_grad():
        bare = denoiser(X, torch.tensor(2.0), Condition(labels=LABELS))
        denoiser.network = wrapper = Wrapper(denoiser.network)
        wrapped = denoiser(X, torch.tensor(2.0), Condition(labels=LABELS))
    assert torch.equal(bare, wrapped)
    assert wrapper.calls >= 1  # once for each part of the batch
