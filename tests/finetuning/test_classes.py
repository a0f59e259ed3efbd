"""Models of other classes: what stays bit for bit, what is shared, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genlab
from genlab.errors import ConfigError, LabelError
from genlab.finetuning.class_tables.classes import network_with_classes, with_classes
from genlab.finetuning.class_tables.origins import ClassOrigin, class_origins
from genlab.finetuning.layouts import layout_of
from genlab.generators import AutoregressiveGenerator, DiffusionGenerator, GanGenerator, Generator
from genlab.generators.discriminator import Calibration, GanDiscriminator
from genlab.generators.families import read_generator
from genlab.networks import (
    ADMUNet,
    BigGANDeepDiscriminator,
    BigGANDeepGenerator,
    BigGANDeepHF,
    BigGANDiscriminator,
    BigGANGenerator,
    DhariwalUNet,
    DiT,
    GatedPixelCNN,
    PixelCNNPP,
    SongUNet,
)
from genlab.networks.base import Network
from genlab.networks.conditional_gan import ConditionalDiscriminator, ConditionalGenerator
from genlab.networks.diffusers_dit import DiffusersDiT
from genlab.networks.diffusers_unet import DiffusersUNet

Make = Callable[[int], Any]

TRANSFORMER: dict[str, Any] = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
UNET: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (1, 1),
    "attn_resolutions": (4,),
    "dropout": 0.0,
}
UNET2D = {
    "block_out_channels": (8, 8),
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}

DIFFUSION: dict[str, Make] = {
    "DiT": lambda k: DiT(8, 1, 1, k, **TRANSFORMER),
    "DiT without null row": lambda k: DiT(8, 1, 1, k, null_class=False, **TRANSFORMER),
    "DiffusersDiT": lambda k: DiffusersDiT(8, 1, 1, k, **TRANSFORMER),
    "SongUNet": lambda k: SongUNet(8, 1, 1, k, num_blocks=1, **UNET),
    "DhariwalUNet": lambda k: DhariwalUNet(
        8, 1, 1, k, num_blocks=1, **(UNET | {"model_channels": 64})
    ),
    "ADMUNet": lambda k: ADMUNet(
        8, 1, 1, k, model_channels=64, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)
    ),
    "DiffusersUNet": lambda k: DiffusersUNet(8, 1, 1, k, options=UNET2D),
}

GANS: dict[str, Make] = {
    "BigGAN": lambda k: BigGANGenerator(32, k, 1, 2, dim_z=8, attn_resolutions=(16,)),
    "BigGAN, unshared": lambda k: BigGANGenerator(
        32, k, 1, 2, dim_z=8, shared_embedding=False, hierarchical=False
    ),
    "BigGAN-deep": lambda k: BigGANDeepGenerator(32, k, 1, 4, dim_z=8),
    "cGAN": lambda k: ConditionalGenerator(8, k, 1, 4, 6, 5),
}

PIXELS: dict[str, Make] = {
    "PixelCNN++": lambda k: PixelCNNPP(8, 1, k, num_filters=4, num_blocks=1),
    "Gated PixelCNN": lambda k: GatedPixelCNN(8, 1, k, 16, 4, 3, head_channels=8),
}

DISCRIMINATORS: dict[str, Make] = {
    "BigGAN": lambda k: BigGANDiscriminator(32, k, 1, 2, num_svs=2),
    "BigGAN-deep": lambda k: BigGANDeepDiscriminator(32, k, 1, 4),
    "cGAN": lambda k: ConditionalDiscriminator(8, k, 1, 4),
}


def drawn(network: Any) -> Any:
    """The network with weights that are all at work: some are zero at first."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return network.eval()


def origins(*old: tuple[int, ...]) -> list[ClassOrigin]:
    return [
        ClassOrigin(name=str(number), rule="chosen", old=each) for number, each in enumerate(old)
    ]


def say(network: Any, labels: list[int] | Tensor | None) -> Tensor:
    """What a diffusion network says of two images."""
    torch.manual_seed(1)
    x, c_noise = torch.randn(2, 1, 8, 8), torch.tensor([0.3])
    told = torch.tensor(labels) if isinstance(labels, list) else labels
    with torch.no_grad():
        out: Tensor = network(x, c_noise, network.embed_labels(told))
    return out


def params(network: Any, labels: list[int] | None) -> Tensor:
    """What an autoregressive network says of two images."""
    torch.manual_seed(1)
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        out: Tensor = network(x, None if labels is None else torch.tensor(labels))
    return out


def images(network: Any, labels: list[int]) -> Tensor:
    """What a GAN draws of two latents."""
    torch.manual_seed(1)
    z = torch.randn(2, network.dim_z)
    with torch.no_grad():
        out: Tensor = network(z, network.embed_labels(torch.tensor(labels)))
    return out


def table_tensors(network: Network) -> set[str]:
    """Names of what is made anew: the tables and their singular vectors."""
    return {
        f"{table.layer}.{name}"
        for table in layout_of(network).tables
        for name in ("weight", *table.vectors)
    }


def assert_shares_all_but(made: nn.Module, base: nn.Module, new: set[str]) -> None:
    tensors, old = made.state_dict(), base.state_dict()
    assert new <= tensors.keys()
    for name, tensor in tensors.items():
        assert (name in new) != (tensor.data_ptr() == old[name].data_ptr()), name
    assert not {id(p) for p in made.parameters()} & {id(p) for p in base.parameters()}
    assert all(not t.is_meta for t in (*made.parameters(), *made.buffers()))


@pytest.mark.parametrize("kind", DIFFUSION)
@pytest.mark.parametrize("count", [3, 12])
def test_a_diffusion_network_keeps_copied_classes_and_the_null_class(kind: str, count: int) -> None:
    base = drawn(DIFFUSION[kind](5))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    made = network_with_classes(base, origins((4,), (0, 1), *[(2,)] * (count - 2)))
    assert made.label_dim == made.config["label_dim"] == count
    # A SongUNet multiplies its columns by the root of their number.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if kind == "SongUNet" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(say(made, [0, 2]), say(base, [4, 2]), **tolerance)
    half = torch.tensor([[0.5, 0.5, 0, 0, 0]])
    torch.testing.assert_close(
        say(made, [1, 1]), say(base, half.expand(2, -1)), rtol=1e-5, atol=1e-5
    )
    if kind != "DiT without null row":
        assert torch.equal(say(made, None), say(base, None))
        assert torch.equal(say(made, [-1, -1]), say(base, [-1, -1]))
    assert_shares_all_but(made, base, table_tensors(made))
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", [kind for kind in DIFFUSION if kind != "DiffusersDiT"])
@pytest.mark.parametrize("null", [True, False])
def test_a_diffusion_network_without_classes_is_the_null_class_or_else_the_mean(
    kind: str, null: bool
) -> None:
    if null and kind == "DiT without null row":
        pytest.skip("it has no null class")
    base = drawn(DIFFUSION[kind](5))
    made = network_with_classes(base, (), has_null_class=null)
    assert made.label_dim == 0
    assert layout_of(made).tables == ()
    expected = say(base, None if null else torch.full((2, 5), 0.2))
    torch.testing.assert_close(say(made, None), expected, rtol=1e-5, atol=1e-5)
    if null and kind in ("DhariwalUNet", "ADMUNet", "DiffusersUNet"):
        assert torch.equal(say(made, None), expected)
    tensors = base.state_dict()
    moved = [n for n, t in made.state_dict().items() if t.data_ptr() != tensors[n].data_ptr()]
    assert len(moved) <= 1


@pytest.mark.parametrize("kind", [kind for kind in DIFFUSION if kind != "DiffusersDiT"])
def test_classes_of_a_diffusion_network_without_any_begin_as_what_it_draws(kind: str) -> None:
    base = drawn(DIFFUSION[kind](0))
    zero = [ClassOrigin(name=str(number), rule="zero") for number in range(3)]
    made = network_with_classes(base, zero)
    torch.testing.assert_close(say(made, [0, 2]), say(base, None), rtol=1e-4, atol=1e-5)
    if kind != "DiT without null row":
        assert torch.equal(say(made, None), say(base, None))
        assert torch.equal(say(made, [0, 2]), say(made, [-1, -1]))
    random = [ClassOrigin(name=str(number), rule="random", seed=0) for number in range(3)]
    made = network_with_classes(base, random)
    assert not torch.equal(say(made, [0, 2]), say(base, None))
    if kind != "DiT without null row":
        assert torch.equal(say(made, None), say(base, None))


@pytest.mark.parametrize("kind", GANS)
@pytest.mark.parametrize("count", [3, 12])
def test_a_gan_keeps_copied_classes(kind: str, count: int) -> None:
    base = drawn(GANS[kind](5))
    made = network_with_classes(base, origins((4,), (0, 1), *[(2,)] * (count - 2)))
    assert made.num_classes == count
    assert torch.equal(images(made, [0, 2]), images(base, [4, 2]))
    assert_shares_all_but(made, base, table_tensors(made))


def test_deepmind_s_biggan_keeps_copied_classes() -> None:
    layers = [[True, 16, 8], [False, 8, 4], [False, 4, 2], [False, 2, 1]]
    base = drawn(BigGANDeepHF(8, 5, 4, 6, layers, attention_position=1, num_stats=2))
    made = network_with_classes(base, origins((4,), (2,)))
    mixture = torch.tensor([0.0, 1.0])
    z = torch.randn(2, 6)
    with torch.no_grad():
        drawn_images = [
            network(z, network.embed_labels(torch.tensor(labels)), mixture)
            for network, labels in ((made, [0, 1]), (base, [4, 2]))
        ]
    assert torch.equal(*drawn_images)
    assert_shares_all_but(made, base, {"embeddings.weight"})


def test_a_reference_batch_has_every_new_class_in_turn() -> None:
    base = drawn(ConditionalGenerator(8, 5, 1, 4, 6, 5, norm="virtual", num_reference=7))
    made = network_with_classes(base, origins((4,), (0,), (1,)))
    assert made.reference_labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert base.reference_labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert images(made, [0, 2]).isfinite().all()
    same = network_with_classes(base, origins(*((number,) for number in range(5))))
    assert torch.equal(images(same, [4, 1]), images(base, [4, 1]))


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_projects_on_the_rows_of_the_new_classes(kind: str) -> None:
    base = drawn(DISCRIMINATORS[kind](5))
    made = network_with_classes(base, origins((4,), (0,), (2,)))
    assert made.num_classes == 3
    assert_shares_all_but(made, base, table_tensors(made))
    [table] = layout_of(made).tables
    layer, old = (network.get_submodule(table.layer) for network in (made, base))
    assert torch.equal(layer.weight, old.weight[[4, 0, 2]])
    if table.vectors:  # the largest singular value of what is projected on is 1
        rows = layer.normalized_weight()
        torch.testing.assert_close(torch.linalg.matrix_norm(rows, 2), torch.tensor(1.0))
    size = made.config["img_resolution"]
    with torch.no_grad():
        logits = made(torch.randn(2, 1, size, size), torch.tensor([0, 2]))
    assert logits.isfinite().all()
    made.train()
    made(torch.randn(2, 1, size, size), torch.tensor([0, 2])).sum().backward()


def test_a_discriminator_of_one_class_keeps_as_many_singular_vectors() -> None:
    base = drawn(BigGANDiscriminator(32, 5, 1, 2, num_svs=2))
    made = network_with_classes(base, origins((3,)))
    made.train()
    made(torch.randn(2, 1, 32, 32), torch.tensor([0, 0]))
    assert all(buffer.isfinite().all() for buffer in made.buffers())
    assert made.embed.u0.shape == made.embed.u1.shape == (1, 1)


def test_a_discriminator_loses_its_calibration() -> None:
    fitted = Calibration(slope=1, intercept=0, error_rate=0.5, log_loss=0.7, images=10)
    base = GanDiscriminator(drawn(BigGANDiscriminator(32, 5, 1, 2)), calibration=fitted)
    made = with_classes(base, ["cat", "dog"])
    assert isinstance(made, GanDiscriminator)
    assert made.calibration is None
    assert (made.num_classes, made.class_names) == (2, ("cat", "dog"))
    assert base.calibration == fitted


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("count", [3, 12])
def test_a_pixelcnn_keeps_copied_classes_and_the_null_class(kind: str, count: int) -> None:
    base = drawn(PIXELS[kind](5))
    made = network_with_classes(base, origins((4,), (0, 1), *[(2,)] * (count - 2)))
    assert torch.equal(params(made, [0, 2]), params(base, [4, 2]))
    assert torch.equal(params(made, None), params(base, None))
    assert_shares_all_but(made, base, table_tensors(made))


@pytest.mark.parametrize("kind", PIXELS)
def test_a_pixelcnn_without_classes_is_the_null_class_or_else_the_mean(kind: str) -> None:
    base = drawn(PIXELS[kind](5))
    assert torch.equal(params(network_with_classes(base, ()), None), params(base, None))
    made = network_with_classes(base, (), has_null_class=False)
    mean = [ClassOrigin(name="0", rule="mean")]
    expected = params(network_with_classes(base, mean), [0, 0])
    torch.testing.assert_close(params(made, None), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(params(made, None), params(base, None), rtol=1e-2, atol=1e-2)


def test_freezing_one_network_leaves_the_other_as_it_is() -> None:
    base = drawn(DIFFUSION["DiT"](5))
    made = network_with_classes(base, origins((4,)))
    made.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_random_tables_are_the_network_s_own_draw_and_seeded() -> None:
    base = drawn(DIFFUSION["DiT"](5))
    other_model: Any = genlab.load("dit-fmnist")
    generator: Any = DiffusionGenerator(base, other_model.preconditioning)
    state = torch.random.get_rng_state()
    tables = [
        with_classes(generator, 400, initial="random", seed=seed).network.y_embedder
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    first, again, other = (table.embedding_table.weight for table in tables)
    assert torch.equal(first, again)
    assert not torch.equal(first[:-1], other[:-1])
    assert torch.equal(first[-1], base.y_embedder.embedding_table.weight[-1])
    assert 0.019 < float(first[:-1].detach().std()) < 0.021  # DiT's standard deviation is 0.02


def test_nothing_is_allocated_of_a_network_without_numbers() -> None:
    with torch.device("meta"):
        base = DIFFUSION["DiT"](5)
        judge = DISCRIMINATORS["BigGAN"](5)
    for each in (origins((4,), (0, 1)), [ClassOrigin(name="0", rule="random", seed=0)], []):
        made = network_with_classes(base, each)
        assert all(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
    assert network_with_classes(judge, origins((4,), (0, 1))).embed.weight.is_meta


def test_a_changed_network_is_refused() -> None:
    base = drawn(DIFFUSION["DiT"](5))
    base.blocks[0].gamma_attn = nn.Parameter(torch.ones(16))
    with pytest.raises(ConfigError, match=r"changed since it was built \(blocks.0.gamma_attn\)"):
        network_with_classes(base, origins((4,)))


@pytest.mark.parametrize("network", [GANS["BigGAN"](5), DIFFUSION["DiffusersDiT"](5)])
def test_networks_that_always_have_classes_say_so(network: Network) -> None:
    with pytest.raises(ConfigError, match="always has classes; give images without any one class"):
        network_with_classes(network, ())


# Bundled models


@pytest.fixture(scope="module")
def dit() -> DiffusionGenerator:
    generator = genlab.load("dit-fmnist")
    assert isinstance(generator, DiffusionGenerator)
    return generator


FEW = {"schedule": {"num_steps": 3}}


@pytest.mark.parametrize("name", ["dit-fmnist", "edm-fmnist"])
@pytest.mark.parametrize("count", [3, 12])
def test_a_bundled_model_samples_with_guidance_right_away(
    name: str, count: int, tmp_path: Path
) -> None:
    base = genlab.load(name)
    names = ["Sneakers", "hand bag", "zebra", *(f"thing {index}" for index in range(count - 3))]
    made = with_classes(base, names, initial="nearest")
    assert (made.num_classes, made.class_names) == (count, tuple(names))
    assert made.card is None
    assert made.sampler.config == base.sampler.config  # guidance 2, among others
    ours = made.sample([1, 2], [0, 1], FEW)
    theirs = base.sample([1, 2], [7, 8], FEW)
    if name == "dit-fmnist":
        assert torch.equal(ours, theirs)
    # Three large guided steps make a rounding error of 6e-8 in the class a hundred times larger.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    made.save_pretrained(tmp_path / "mine")
    again = read_generator(tmp_path / "mine")
    assert again.class_names == tuple(names)
    assert torch.equal(again.sample([1, 2], [0, 1], FEW), ours)
    assert again.weights_sha256() == made.weights_sha256()


@pytest.mark.parametrize("name", ["dit-fmnist", "edm-fmnist"])
def test_a_bundled_model_without_classes_draws_what_it_drew_without_a_class(name: str) -> None:
    base: Any = genlab.load(name)
    made: Any = with_classes(base, 0)
    assert (made.num_classes, made.class_names, made.has_null_class) == (0, None, False)
    assert made.sampler.config["guidance"] == []
    x, sigma = torch.randn(2, *base.image_shape), torch.tensor(1.5)
    with torch.no_grad():
        ours, theirs = (g.denoiser(x, sigma, g.condition(None)) for g in (made, base))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert made.sample([1], None, FEW).shape == (1, *base.image_shape)


def test_an_unconditional_model_gets_classes_and_guidance(dit: DiffusionGenerator) -> None:
    base = with_classes(dit, 0)
    made = with_classes(base, ["cat", "dog"])
    assert made.has_null_class
    guided = {**FEW, "guidance": [{"name": "cfg", "scale": 2.0}]}
    plain = base.sample([1], None, FEW)
    # With all classes alike, guidance moves nothing but by rounding.
    torch.testing.assert_close(made.sample([1], [1], guided), plain, rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match="the base has no classes to begin with"):
        class_origins(base, ["cat"], "nearest")


def test_a_base_without_a_null_class_stays_without(dit: DiffusionGenerator) -> None:
    made = with_classes(dit.changed(has_null_class=False), 3)
    assert not made.has_null_class
    with pytest.raises(ConfigError, match="label dropout"):
        made.sample([1], [0], FEW)  # its own sampler has guidance


def test_origins_of_a_record_make_the_same_tables(dit: DiffusionGenerator) -> None:
    names = ["Sneakers", "zebra"]
    first = with_classes(dit, names, initial="nearest")
    again = with_classes(dit, names, initial=class_origins(dit, names, "nearest"))
    assert first.weights_sha256() == again.weights_sha256()
    with pytest.raises(LabelError, match="give one for each, in the same order"):
        with_classes(dit, ["zebra", "Sneakers"], initial=class_origins(dit, names, "nearest"))
    with pytest.raises(LabelError, match="class 11, and the base has 10"):
        with_classes(dit, 1, initial=origins((11,)))
    zero = [ClassOrigin(name="0", rule="zero")]
    with pytest.raises(LabelError, match="rule 'zero', and the base has 10"):
        with_classes(dit, 1, initial=zero)
    mixed = [ClassOrigin(name=str(seed), rule="random", seed=seed) for seed in (0, 1)]
    with pytest.raises(ConfigError, match="need one seed in common"):
        with_classes(dit, 2, initial=mixed)


def test_models_of_the_old_classes_leave_the_sampler(dit: DiffusionGenerator) -> None:
    classifier = {"name": "classifier", "classifier": "classifier-fmnist", "scale": 1.0}
    cads = {"name": "cads"}
    base = dit.changed(
        sampler={
            "guidance": [classifier, cads],
            "stitch": [{"model": "dit-fmnist-s", "fraction": 0.4}],
        }
    )
    made = with_classes(base, 3)
    kept = made.sampler.config
    assert [entry["name"] for entry in kept["guidance"]] == ["cads"]
    assert "stitch" not in kept


def test_a_gan_and_a_pixelcnn_of_other_classes_can_be_saved(tmp_path: Path) -> None:
    generators: list[Generator] = [
        GanGenerator(drawn(GANS["BigGAN"](5))),
        AutoregressiveGenerator(
            drawn(PIXELS["Gated PixelCNN"](5)), sampler={"guidance_scale": 1.5}, has_null_class=True
        ),
    ]
    for base in generators:
        made = with_classes(base, ["cat", "dog"], initial={"cat": 4, "dog": [0, 1]})
        assert torch.equal(made.sample([3], [0]), base.sample([3], [4]))
        made.save_pretrained(tmp_path / base.family)
        again = read_generator(tmp_path / base.family)
        assert again.class_names == ("cat", "dog")
        assert torch.equal(again.sample([3], [1]), made.sample([3], [1]))
    none = with_classes(generators[1], 0)
    assert none.sampler.config["guidance_scale"] == 1.0
    assert none.sample([3]).shape == (1, 1, 8, 8)
