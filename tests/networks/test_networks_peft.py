"""peft on GenLab's networks: adapters act, train, and merge into what they were unmerged."""

import copy
import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from test_layouts import VARIANTS, network_of, run
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genlab import compute
from genlab.errors import ConfigError
from genlab.networks import GatedPixelCNN, SongUNet
from genlab.networks.base import DiffusionNetwork, Network
from genlab.networks.gan_base import DiscriminatorNetwork, GeneratorNetwork
from genlab.networks.layers.spectral_norm import SpectralNorm, remove_spectral_norm

PLAIN = (nn.Linear, nn.Conv2d, nn.Conv1d, nn.Embedding)
NETWORKS: dict[str, Callable[[], Network]] = {
    **{
        name: partial(network_of, name)
        for name in (
            "adm-classifier", "adm-unet", "classifier-cnn", "conditional-discriminator",
            "dhariwal-unet", "dit", "gated-pixelcnn", "song-unet",
        )
    },
    **{name: VARIANTS[name] for name in ("ncsn++", "adm added", "diffusers dit", "diffusers unet")},
    "biggan-generator": lambda: without_spectral_norm("biggan-generator"),
    "biggan-deep-generator": lambda: without_spectral_norm("biggan-deep-generator"),
}  # fmt: skip


def without_spectral_norm(name: str) -> Network:
    network: Network = network_of(name)
    remove_spectral_norm(network.eval())
    return network


def alive(network: Network) -> Network:
    """In evaluation, with weights of which every one matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(params=NETWORKS, name="network")
def network_to_adapt(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return alive(NETWORKS[request.param]())


def exactly(paths: list[str]) -> str:
    """For peft, which takes a path in a list for the end of others, too."""
    return "|".join(map(re.escape, paths))


def layers_of(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [path for path, module in network.named_modules() if isinstance(module, kinds)]


def adapt(network: Network, config: Any) -> Any:
    """The network inside peft, its adapter far from silent."""
    model = get_peft_model(network, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def check_merging(network: Network, config: Any) -> None:
    with torch.no_grad():
        before, keys = run(network), list(network.state_dict())
    model = adapt(network, config)
    out = run(network)
    assert relative(out, before) > 1e-3
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    (out * torch.randn_like(out)).sum().backward()
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    unmerged, merged = out.detach(), model.merge_and_unload()
    with torch.no_grad():
        assert relative(run(merged), unmerged) < 1e-5
    assert list(merged.state_dict()) == keys


def test_lora_on_every_layer_merges_exactly(network: Network) -> None:
    check_merging(network, LoraConfig(r=2, target_modules=exactly(layers_of(network, *PLAIN))))


KINDS: dict[str, tuple[Any, tuple[type[nn.Module], ...]]] = {
    "rslora": (
        lambda names: LoraConfig(r=4, use_rslora=True, target_modules=exactly(names)),
        PLAIN,
    ),
    "dora": (
        lambda names: LoraConfig(r=2, use_dora=True, target_modules=exactly(names)),
        (nn.Linear, nn.Conv2d, nn.Embedding),
    ),
    "loha": (lambda names: LoHaConfig(r=2, target_modules=exactly(names)), (nn.Linear, nn.Conv2d)),
    "lokr": (lambda names: LoKrConfig(r=2, target_modules=exactly(names)), (nn.Linear, nn.Conv2d)),
}


@pytest.mark.parametrize("name", ["song-unet", "ncsn++", "adm-unet", "dit", "biggan-generator"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_kin_merge_exactly_too(kind: str, name: str) -> None:
    torch.manual_seed(0)
    network = alive(NETWORKS[name]())
    make, kinds = KINDS[kind]
    check_merging(network, make(layers_of(network, *kinds)))


@pytest.mark.parametrize("name", ["song-unet", "dit", "biggan-generator"])
def test_rotations_merge_exactly(name: str) -> None:
    """Of the layers that peft rotates right: those without a kernel, in blocks of 4 inputs."""
    torch.manual_seed(0)
    network = alive(NETWORKS[name]())
    attention = {path.rpartition(".")[0] for path in network.layout().groups["attention"]} & set(
        layers_of(network, nn.Linear, nn.Conv2d)
    )
    names = sorted(attention)
    check_merging(network, OFTConfig(r=0, oft_block_size=4, target_modules=exactly(names)))


def test_resampled_layers_are_among_them() -> None:
    network = NETWORKS["ncsn++"]()
    resampled = [p.rpartition(".")[0] for p in network.state_dict() if "resample_filter" in p]
    blocks = [path for path in resampled if path.endswith((".conv0", ".skip"))]
    assert len(blocks) == 4
    assert set(blocks) <= set(layers_of(network, nn.Conv2d))


@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig, OFTConfig])
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("ncsn++", "enc.4x4_aux_residual"),
        ("biggan-generator", "linear"),
        ("biggan-discriminator", "embed"),
        ("pixelcnn++", "u_init.conv"),
    ],
)
def test_layers_that_cannot_take_one_are_refused(name: str, target: str, config: Any) -> None:
    network = VARIANTS[name]() if name in VARIANTS else network_of(name)
    with pytest.raises((ValueError, TypeError), match="not supported"):
        get_peft_model(network, config(target_modules=[target]))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["biggan-generator", "biggan-deep-generator"])
def test_without_spectral_norm_evaluation_is_the_same(
    name: str, training: bool, tmp_path: Any
) -> None:
    network = alive(network_of(name))
    with torch.no_grad():
        for _ in range(3):
            run(network.train())
        before = run(network.eval())
        remove_spectral_norm(network.train(training))
        assert network.output_layer[-1].training == training
        assert not layers_of(network, SpectralNorm)
        assert torch.equal(run(network.eval()), before)
        network.save_pretrained(tmp_path)
        again = type(network).from_pretrained(tmp_path)
        assert torch.equal(run(again), before)
    remove_spectral_norm(network)  # nothing is left to do


def test_what_exists_with_spectral_norm_only_keeps_it() -> None:
    network = network_of("biggan-discriminator")
    with pytest.raises(ConfigError, match="with spectral normalisation only"):
        remove_spectral_norm(network)


TABLES = ("adm-unet", "dit", "diffusers dit", "diffusers unet", "biggan-generator",
          "gated-pixelcnn", "song-unet", "biggan hf", "pixelcnn++", "conditional-generator",
          "biggan tables")  # fmt: skip


def outputs(network: Network) -> list[Tensor]:
    """For classes, for no class where there is such a thing, and for class weights."""
    torch.manual_seed(1)
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    if isinstance(network, GeneratorNetwork):
        z, classes = torch.randn(2, network.dim_z), torch.tensor([2, 0])
        mixed = [] if network.config.get("shared_embedding") is False else [weights]
        return [network(z, network.embed_labels(labels)) for labels in (classes, *mixed)]
    classes = torch.tensor([2, -1])
    if isinstance(network, DiffusionNetwork):
        rows = [network.embed_labels(labels) for labels in (classes, weights, None)]
        return [row for row in rows if row is not None]
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    return [network(x, classes), network(x)]


@pytest.mark.parametrize("name", TABLES)
@torch.no_grad()
def test_tables_may_be_parametrised_or_adapted(name: str) -> None:
    """A table whose weight is computed acts as one that holds these numbers."""
    torch.manual_seed(0)
    maker = VARIANTS.get(name) or NETWORKS.get(name) or (lambda: network_of(name))
    network = alive(maker())
    if name in ("biggan hf", "biggan tables"):
        for _ in range(5):
            run(network.train())
        network.eval()
    table = network.layout().tables[-1]
    changed, parametrised, adapted = (copy.deepcopy(network) for _ in range(3))
    layer = changed.get_submodule(table.layer)
    assert isinstance(layer.weight, Tensor)
    change = 0.5 * torch.randn_like(layer.weight)
    layer.weight += change

    class Moved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + change

    parametrize.register_parametrization(parametrised.get_submodule(table.layer), "weight", Moved())
    expected, before = outputs(changed), outputs(network)
    for now, then in zip(expected[:1], before, strict=False):
        assert relative(now, then) > 1e-3
    for now, then in zip(outputs(parametrised), expected, strict=True):
        torch.testing.assert_close(now, then)
    model = adapt(adapted, LoraConfig(r=2, target_modules=exactly([table.layer])))
    unmerged = outputs(adapted)
    assert relative(unmerged[0], before[0]) > 1e-4
    for now, then in zip(outputs(model.merge_and_unload()), unmerged, strict=True):
        torch.testing.assert_close(now, then)


@torch.no_grad()
def test_a_discriminators_projection_is_called() -> None:
    network = alive(network_of("biggan-discriminator"))
    before = run(network)
    network.embed.register_forward_hook(lambda _, __, out: out + 1)
    assert not torch.allclose(run(network), before)
    assert isinstance(network, DiscriminatorNetwork)


@pytest.mark.parametrize("hooked", [False, True])
@torch.no_grad()
def test_pixels_are_decoded_with_the_adapter(hooked: bool) -> None:
    """The decoder of Gated PixelCNN keeps matrices: those of adapted layers, too."""
    network = alive(network_of("gated-pixelcnn"))
    assert isinstance(network, GatedPixelCNN)
    if hooked:
        for branch in network.layout().branches:
            network.get_submodule(branch.layer).register_forward_hook(lambda _, __, out: out * 1.5)
    else:
        adapt(network, LoraConfig(r=2, target_modules=exactly(layers_of(network, *PLAIN))))
    pixels, labels = torch.rand(2, 1, 8, 8).round() * 2 - 1, torch.tensor([1, -1])
    decoder, expected = network.decoder(labels, 8, 8), network(pixels, labels)
    for i in range(8):
        for j in range(8):
            torch.testing.assert_close(
                decoder.params(i, j), expected[:, :, i, j], rtol=1e-4, atol=1e-5
            )
            decoder.put(i, j, pixels[:, :, i, j])


WIDE: dict[str, Any] = {
    "img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 128,
    "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip


@pytest.mark.parametrize("rank", [2, 128])
@pytest.mark.parametrize("first", ["prepare", "adapt"])
@pytest.mark.parametrize("name", ["song-unet", "dit"])
@torch.no_grad()
def test_prepared_networks_take_adapters(name: str, first: str, rank: int) -> None:
    """Winograd's algorithm and products as convolutions; of rank 128 an adapter's would suit."""
    torch.manual_seed(0)
    network = alive(SongUNet(**WIDE) if name == "song-unet" else network_of(name))
    targets = [branch.layer for branch in network.layout().branches]
    plan = dataclasses.replace(
        compute.choose(torch.device("cpu")), winograd=True, convolve_products=True
    )
    config = LoraConfig(r=rank, target_modules=exactly(targets))
    prepared = copy.deepcopy(network)
    before = run(network)
    adapt(network, config)
    expected = run(network)
    if first == "prepare":
        plan.prepare(prepared)
    model = adapt(prepared, config)
    if first == "adapt":
        plan.prepare(prepared)
    assert any(
        getattr(m, "use_winograd", False) or getattr(m, "use_convolution", False)
        for m in prepared.modules()
    )
    out = run(prepared)
    assert relative(expected, before) > 1e-3
    assert relative(out, expected) < 1e-5
    merged = model.merge_and_unload()
    plan.prepare(merged)
    assert relative(run(merged), expected) < 1e-5


@pytest.mark.parametrize("name", ["adm-unet", "dit", "song-unet", "gated-pixelcnn"])
def test_an_adapted_network_tells_the_same_parts(name: str) -> None:
    network = NETWORKS[name]()
    before = network.layout()
    adapt(network, LoraConfig(r=2, target_modules=exactly(layers_of(network, *PLAIN))))
    after = network.layout()
    assert (after.blocks, after.branches, after.norms) == (
        before.blocks,
        before.branches,
        before.norms,
    )
    assert (after.modulated, after.tables) == (before.modulated, before.tables)
    bases = [name.replace(".base_layer", "") for name in after.groups["bias"]]
    assert tuple(bases) == before.groups["bias"]
