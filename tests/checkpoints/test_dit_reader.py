"""Official DiT and SiT files: what they tell of themselves, and what is refused."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import genlab
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.errors import CheckpointError, ConfigError
from genlab.generators import DiffusionGenerator
from genlab.networks import DiT

SIZE: dict[str, Any] = {"hidden_size": 48, "depth": 3, "num_heads": 3}


def weights(**changes: Any) -> dict[str, Tensor]:
    """The state dict of a small network, as the official code would store it."""
    options = {"img_resolution": 8, "in_channels": 4, "out_channels": 8, "label_dim": 10}
    network = DiT(**{**options, **SIZE, "mlp_ratio": 2.0, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dict(network.state_dict())


def convert(file: Path, format_: str | None = None, **config: Any) -> DiffusionGenerator:
    generator = genlab.convert(file, format_, config or None)
    assert isinstance(generator, DiffusionGenerator)
    return generator


def saved(folder: Path, content: Any, name: str = "dit.pt") -> Path:
    file = folder / name
    torch.save(content, file)
    return file


def test_shapes_tell_all_but_the_heads(tmp_path: Path) -> None:
    state = weights()
    file = saved(tmp_path, state)
    generator = convert(file, num_heads=3)
    for name, value in generator.network.state_dict().items():
        assert torch.equal(value, state[name])
    assert generator.state_shape == (4, 8, 8)
    assert (generator.num_classes, generator.has_null_class) == (10, True)
    assert generator.preconditioning == Discrete(variance="learned_range")
    assert generator.sampler.config["guidance"] == [{"name": "cfg", "scale": 1.5, "channels": 3}]
    with pytest.raises(ConfigError, match=r"48 features .* give num_heads"):
        convert(file)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (1152, 16)])
def test_published_widths_have_published_heads(tmp_path: Path, width: int, heads: int) -> None:
    state = weights(hidden_size=width, depth=1, num_heads=1)
    network: Any = convert(saved(tmp_path, state)).network
    assert network.config.num_heads == heads


def test_a_table_without_null_class(tmp_path: Path) -> None:
    file = saved(tmp_path, weights(null_class=False, out_channels=4))
    for config in ({"num_classes": 10}, {"class_dropout_prob": 0.0}):
        generator = convert(file, num_heads=3, **config)
        assert (generator.num_classes, generator.has_null_class) == (10, False)
        assert generator.sampler.config["guidance"] == []
        assert generator.preconditioning == Discrete(variance="fixed_large")
    assert convert(file, num_heads=3).num_classes == 9  # the default: the last row is no class


def test_arguments_of_the_diffusion(tmp_path: Path) -> None:
    file = saved(tmp_path, weights(out_channels=4))
    generator = convert(
        file,
        num_heads=3,
        noise_schedule="squaredcos_cap_v2",
        diffusion_steps=100,
        sigma_small=True,
        predict_xstart=True,
    )
    assert generator.preconditioning == Discrete(
        schedule="cosine", T=100, prediction="x0", variance="fixed_small"
    )
    images = generator.sample([0], [3], {"schedule": {"steps": 4}})
    assert images.isfinite().all()


def test_training_checkpoints_tell_more(tmp_path: Path) -> None:
    """``ema`` goes before ``model``, and the script's own arguments are read as plain values."""
    ema, model = weights(depth=1, num_heads=6, hidden_size=48), {"x": torch.ones(1)}
    args = Namespace(model="DiT-S/2", num_classes=10, vae="mse", global_seed=0, image_size=64)
    file = saved(tmp_path, {"model": model, "ema": ema, "opt": {"state": {}}, "args": args})
    network: Any = convert(file).network
    assert network.config.num_heads == 6  # of the named model
    args.path_type, args.prediction, args.model = "GVP", "noise", "SiT-S/2"
    file = saved(tmp_path, {"model": model, "ema": ema, "args": args}, "0400000.pt")
    assert convert(file).preconditioning == Flow(path="gvp", prediction="noise")
    args.num_classes = "many"
    with pytest.raises(CheckpointError, match=r"odd arguments: num_classes .* got 'many'"):
        convert(saved(tmp_path, {"ema": ema, "args": args}), "sit")


def test_sit_files_are_flows(tmp_path: Path) -> None:
    file = saved(tmp_path, weights(), "SiT-XL-2-256.pt")
    generator = convert(file, num_heads=3)
    assert generator.preconditioning == Flow()
    assert generator.sampler.config["solver"]["name"] == "flow"
    assert convert(file, "sit", num_heads=3, path_type="VP").preconditioning == Flow(path="vp")


def test_repas_files_are_told_from_sits_and_refused(tmp_path: Path) -> None:
    """Its time and velocity run the other way, so that a SiT's sampler would draw noise."""
    state = weights(out_channels=4)
    projector = {"projectors.0.0.weight": torch.ones(2, 48), "projectors.0.0.bias": torch.ones(2)}
    for content, config in [
        (state | projector, {}),
        ({"ema": state, "args": Namespace(path_type="linear", prediction="v")}, {}),
        ({"ema": state, "args": Namespace(path_type="cosine")}, {}),
        ({"ema": state, "args": Namespace(proj_coeff=0.5)}, {"cls": "SiT"}),
        (state, {"cls": "SiT", "path_type": "linear"}),
    ]:
        with pytest.raises(CheckpointError, match=r"is REPA's, .* run the other way"):
            convert(saved(tmp_path, content, "0400000.pt"), num_heads=3, **config)


def test_a_file_that_could_be_either_is_not_guessed(tmp_path: Path) -> None:
    file = saved(tmp_path, weights(), "0400000.pt")
    with pytest.raises(CheckpointError, match="could be any of dit, sit; say which"):
        convert(file, num_heads=3)
    assert isinstance(convert(file, cls="SiT", num_heads=3).preconditioning, Flow)


@pytest.mark.parametrize("kind", ["dit", "sit"])
def test_saved_and_loaded_again_it_draws_the_same(kind: str, tmp_path: Path) -> None:
    generator = convert(saved(tmp_path, weights()), kind, num_heads=3)
    generator.save_pretrained(tmp_path / "model")
    loaded = genlab.load(str(tmp_path / "model"))
    sampler = {"schedule": {"num_steps": 3}}
    expected = generator.sample([0, 1], [3, 4], sampler)
    assert torch.equal(loaded.sample([0, 1], [3, 4], sampler), expected)
    assert loaded.sampler == generator.sampler


def test_safetensors_in_half_precision(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in weights().items()}
    save_file(state, tmp_path / "dit.safetensors")
    network = convert(tmp_path / "dit.safetensors", num_heads=3).network
    assert all(torch.equal(v, state[n].float()) for n, v in network.state_dict().items())


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(state: dict[str, Tensor]) -> None:
        del state[name]

    return damage


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    def damage(state: dict[str, Tensor]) -> None:
        state[name] = torch.zeros(shape)

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop("pos_embed"), "missing: pos_embed"),
        (drop("blocks.1.attn.qkv.bias"), r"missing: blocks\.1\.attn\.qkv\.bias"),
        (put("blocks.0.norm1.weight", 48), r"unexpected: blocks\.0\.norm1\.weight"),
        (put("blocks.999999999999.attn.proj.bias", 48), "unexpected: blocks.999999999999"),
        (put("pos_embed", 1, 15, 48), "no square grid"),
        (put("pos_embed", 1, 0, 48), "no square grid"),
        (put("pos_embed", 16, 48), "odd ranks"),
        (put("final_layer.linear.weight", 20, 48), r"final_layer\.linear\.weight is \[20, 48\]"),
        (put("y_embedder.embedding_table.weight", 11, 32), r"\[11, 32\] where \[11, 48\]"),
    ],
)
def test_damage_is_named(
    damage: Callable[[dict[str, Tensor]], None], reason: str, tmp_path: Path
) -> None:
    state = weights()
    damage(state)
    with pytest.raises(CheckpointError, match=reason):
        convert(saved(tmp_path, state), "dit", num_heads=3)


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        ({"hidden_sise": 48}, "hidden_size"),
        ({"depth": 10**6}, r"depth of DiT must be a whole number in 1 \.\.\. 1024"),
        ({"learn_sigma": "yes"}, "true or false"),
        ({"num_heads": 5}, "num_heads"),
        ({"cls": "SiT"}, "read as DiT, but the config says cls=SiT"),
        ({"noise_schedule": "cosine"}, "squaredcos_cap_v2"),
        ({"path_type": "GVP"}, "DiT has no argument 'path_type'"),
        ({"depth": 2}, r"unexpected: blocks\.2"),
        ({"num_classes": 7}, r"embedding_table\.weight is \[11, 48\] where \[8, 48\]"),
    ],
)
def test_a_wrong_config_is_named(config: dict[str, Any], cure: str, tmp_path: Path) -> None:
    file = saved(tmp_path, weights())
    with pytest.raises((ConfigError, CheckpointError), match=cure):
        convert(file, "dit", **{"num_heads": 3, **config})


def test_arguments_may_stand_under_kwargs(tmp_path: Path) -> None:
    file = saved(tmp_path, weights())
    generator = convert(file, cls="DiT", kwargs={"num_heads": 3, "depth": 3})
    config: Any = generator.network.config
    assert config["num_heads"] == 3
    with pytest.raises(ConfigError, match="kwargs must be a mapping"):
        convert(file, "dit", kwargs=[3])
    with pytest.raises(ConfigError, match="read as DiT, but the config says cls=SiT"):
        convert(file, "dit", kwargs={"cls": "SiT"})


def test_tensors_that_the_file_does_not_hold_are_refused(tmp_path: Path) -> None:
    """One number with a stride of 0 claims to be terabytes; so does a tensor without numbers."""
    for forged in (torch.zeros(1).expand(2**40), torch.empty(2**40, device="meta")):
        file = saved(tmp_path, {**weights(), "blocks.0.attn.qkv.weight": forged})
        with pytest.raises(CheckpointError, match="does not hold all numbers of blocks"):
            convert(file, "dit", num_heads=3)


def test_a_forged_nest_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"x": 1}
    loop["ema"] = loop
    with pytest.raises(CheckpointError, match="holds no state dict"):
        convert(saved(tmp_path, loop), "dit", num_heads=3)
    nest: list[Any] = []
    for _ in range(64):
        nest = [nest, nest]
    file = saved(tmp_path, {"ema": weights(), "args": Namespace(model=nest)})
    with pytest.raises(ConfigError, match="give num_heads"):
        convert(file, "dit")


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch trapped",)

    for content in ({"ema": weights(), "args": Trap()}, {**weights(), "x": Trap()}):
        file = saved(tmp_path, content)
        with pytest.raises(CheckpointError, match=r"asks for os\.system"):
            convert(file, "dit", num_heads=3)
    assert not Path("trapped").exists()


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    file = saved(tmp_path, weights())
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        convert(file, "dit", num_heads=3)


def test_official_weights_of_every_case(shared: Path) -> None:
    for case in ("dit_tiny", "dit_patch4_posembed", "dit_no_null_class", "sit_tiny"):
        file = shared / "golden" / case / "weights.safetensors"
        heads = {"dit_patch4_posembed": 2, "dit_no_null_class": 4}.get(case, 3)
        network = convert(file, case[:3], num_heads=heads).network
        stored = load_file(file)
        assert network.state_dict().keys() == stored.keys()
        assert all(torch.equal(v, stored[n].float()) for n, v in network.state_dict().items())
