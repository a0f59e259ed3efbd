"""What holds for every network of the diffusion family; numbers are checked in tests/golden."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.errors import ConfigError, LabelError
from genlab.networks import DhariwalUNet, DiffusionNetwork, DiT, SongUNet

SMALL: dict[str, Any] = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 4,
    "augment_dim": 2,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
TRANSFORMER: dict[str, Any] = {
    **{key: SMALL[key] for key in ("img_resolution", "in_channels", "out_channels")},
    **{key: SMALL[key] for key in ("label_dim", "augment_dim")},
    "hidden_size": 32,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
}
NETWORKS: dict[str, Callable[[], DiffusionNetwork]] = {
    "ddpmpp": lambda: SongUNet(**SMALL),
    "ncsnpp": lambda: SongUNet(**SMALL, **NCSNPP),
    "skip": lambda: SongUNet(**SMALL, encoder_type="skip", decoder_type="skip"),
    "patches": lambda: SongUNet(**{**SMALL, "img_resolution": 32}, patch_size=2),
    "adm": lambda: DhariwalUNet(**{**SMALL, "model_channels": 32}),
    "dit": lambda: DiT(**TRANSFORMER),
    "dit-streams": lambda: DiT(**TRANSFORMER, num_streams=2),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> DiffusionNetwork:
    """A network in eval mode whose every weight matters: fresh ones have silent layers."""
    network = NETWORKS[request.param]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inputs(network: DiffusionNetwork, batch: int = 2) -> tuple[Tensor, Tensor]:
    config: Any = network.config
    size = config.img_resolution
    return torch.randn(batch, config.in_channels, size, size), torch.linspace(-1, 1, batch)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@torch.no_grad()
def test_each_image_has_its_own_noise_level_class_and_augmentation(
    network: DiffusionNetwork,
) -> None:
    x, c_noise = inputs(network)
    x[1] = x[0]
    labels, augment = torch.tensor([2, 2]), torch.zeros(2, 2)

    def difference(c: Tensor, y: Tensor, a: Tensor) -> float:
        F = network(x, c, network.embed_labels(y), a)
        assert F.shape == x.shape
        return relative(F[1:], F[:1])

    same = c_noise[:1].expand(2)
    assert difference(same, labels, augment) < 1e-5
    assert difference(c_noise, labels, augment) > 1e-3
    assert difference(same, torch.tensor([2, 1]), augment) > 1e-3
    assert difference(same, labels, torch.tensor([[0.0, 0.0], [1.0, 0.0]])) > 1e-3


@torch.no_grad()
def test_all_ways_to_say_null_class_agree(network: DiffusionNetwork) -> None:
    x, c_noise = inputs(network)
    reference = network(x, c_noise)
    null_labels = (torch.tensor([-1, -1]), torch.zeros(2, 4), None)
    for labels in null_labels:
        F = network(x, c_noise, network.embed_labels(labels))
        torch.testing.assert_close(F, reference, rtol=1e-5, atol=1e-5)
    assert (
        relative(network(x, c_noise, network.embed_labels(torch.tensor([0, 1]))), reference) > 1e-3
    )


def test_labels_that_do_not_exist_are_refused(network: DiffusionNetwork) -> None:
    for labels in ([0, 4], [-2, 0]):
        with pytest.raises(LabelError, match=r"0 \.\.\. 3"):
            network.embed_labels(torch.tensor(labels))
    with pytest.raises(LabelError, match="4 classes"):
        network.embed_labels(torch.zeros(2, 5))


def test_an_unconditional_network_embeds_nothing() -> None:
    network = SongUNet(**{**SMALL, "label_dim": 0})
    assert network.embed_labels(None) is None
    assert network.embed_labels(torch.tensor([3])) is None


@torch.no_grad()
def test_what_is_saved_comes_back(network: DiffusionNetwork, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["_class_name"] == type(network).__name__
    )
    x, c_noise = inputs(network)
    assert torch.equal(loaded(x, c_noise), network(x, c_noise))


def test_gradient_checkpointing_saves_memory_and_no_gradient(network: DiffusionNetwork) -> None:
    x, c_noise = inputs(network)

    def step() -> tuple[int, list[Tensor]]:
        """Numbers kept for the backward pass, and its gradients."""
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            F = network(x, c_noise)
        F.square().sum().backward()
        return kept, [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain_kept, plain = step()
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    kept, gradients = step()
    network.disable_gradient_checkpointing()
    assert kept < plain_kept / 2
    for a, b in zip(gradients, plain, strict=True):
        assert torch.equal(a, b)
    assert step()[0] == plain_kept


@torch.no_grad()
def test_bfloat16_is_close(network: DiffusionNetwork) -> None:
    x, c_noise = inputs(network)
    c_noise = 100 * c_noise  # large phases: the noise level must be embedded in float32
    reference = network(x, c_noise)
    F = network.bfloat16()(x.bfloat16(), c_noise)
    assert F.dtype == torch.bfloat16
    # bf16 has 8 bits; a handful of layers loses a few of them
    assert relative(F, reference) < 0.05


@torch.no_grad()
def test_autocast_is_close(network: DiffusionNetwork) -> None:
    x, c_noise = inputs(network)
    reference = network(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        F = network(x, c_noise, network.embed_labels(torch.tensor([-1, -1])))
    assert relative(F, reference) < 0.05


@pytest.mark.parametrize("cls", [SongUNet, DhariwalUNet])
def test_an_untrained_network_is_nearly_silent(cls: type[DiffusionNetwork]) -> None:
    network = cls(**{**SMALL, "model_channels": 32}).eval()
    x, c_noise = inputs(network)
    with torch.no_grad():
        assert float(network(x, c_noise).abs().max()) < 1e-2


@pytest.mark.parametrize("cls", [SongUNet, DhariwalUNet])
@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"img_resolution": 15}, "multiple of 2"),
        ({"model_channels": 48, "channel_mult": [1, 3]}, "equal groups"),
        ({"model_channels": 3}, "channels"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"channel_mult": []}, "channel_mult"),
        ({"in_channels": -1}, "in_channels"),
    ],
)
def test_bad_arguments_name_the_cure(
    cls: type[DiffusionNetwork], change: dict[str, Any], cure: str
) -> None:
    with pytest.raises(ConfigError, match=cure):
        cls(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"encoder_type": "residul"}, "standard, skip, residual"),
        ({"decoder_type": "residual"}, "standard, skip"),
        ({"embedding_type": "learned"}, "positional, fourier"),
        ({"resample_filter": [1, 2, 1]}, r"\[1, 3, 3, 1\]"),
        ({"resample_filter": []}, r"\[1, 1\]"),
        ({"patch_size": 3}, "patch_size"),
        ({"img_resolution": 18, "patch_size": 2}, "multiple of 2"),
    ],
)
def test_bad_song_unet_arguments_name_the_cure(change: dict[str, Any], cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        SongUNet(**{**SMALL, **change})


def test_attention_heads_must_divide_the_channels() -> None:
    # 160 channels make 2 heads of 80, 224 cannot make 3
    DhariwalUNet(**{**SMALL, "model_channels": 160, "channel_mult": [1, 1]})
    with pytest.raises(ConfigError, match="3 attention heads"):
        DhariwalUNet(**{**SMALL, "model_channels": 224, "channel_mult": [1, 1]})


def test_patches_move_the_grid_and_keep_the_image() -> None:
    network = NETWORKS["patches"]()
    assert "16x16_conv" in network.enc
    assert network.enc["16x16_conv"].in_channels == 3 * 2**2
    assert network.enc["8x8_block0"].num_heads == 1


@pytest.mark.parametrize(
    "case", ["edm_net_ddpmpp_edm", "edm_net_ncsnpp_ve", "edm_net_song_skip", "edm_net_adm_iddpm"]
)
def test_names_and_shapes_are_those_of_official_checkpoints(shared: Path, case: str) -> None:
    meta = json.loads((shared / "golden" / case / "meta.json").read_text())
    net = meta["constructors"]["net"]
    options = dict(net["kwargs"])
    cls = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[options.pop("model_type")]
    channels = options.pop("img_channels")
    outputs = 2 * channels if net["cls"] == "iDDPMPrecond" else channels
    network = cls(in_channels=channels, out_channels=outputs, **options)
    expected = {
        name.removeprefix("model."): shape
        for name, shape in meta["weight_tensors"]["weights"].items()
        if name.startswith("model.")
    }
    assert {name: list(t.shape) for name, t in network.state_dict().items()} == expected
