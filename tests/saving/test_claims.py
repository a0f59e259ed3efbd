"""What a folder says of its network is held against its weights before anything is built."""

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import genlab
from genlab import DiffusionGenerator
from genlab.errors import CheckpointError
from genlab.saving.claims import LARGEST, build_empty, check_config

SECONDS = 10
MEGABYTES = 500


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path) -> str:
    """The sentence that loading ends with, quickly and in little memory."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError) as caught:
        genlab.load(str(folder))
    assert time.process_time() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    message = str(caught.value)
    assert str(folder) in message
    assert message.isprintable()
    return message


CASES = {
    "depth-1e9": "claims depth = 1000000000, more than any network has",
    "T-1e9": "T >= 1 noise levels, and at most 100,000, got 1000000000",
    "mlp-1e-9": r"cannot be built: mlp_ratio 1e-09 leaves no hidden layer to 16 features",
    "modelmixin": "has no model ModelMixin that a folder can hold",
}


@pytest.mark.parametrize("name", CASES)
def test_claims_before_allocation(name: str, shared: Path) -> None:
    folder = shared / "cases" / "folders" / name
    if not folder.is_dir():
        pytest.skip(f"no case {name}")
    with pytest.raises(CheckpointError, match=CASES[name]):
        raise CheckpointError(refused(folder))


CLAIMS: dict[str, dict[str, Any]] = {
    "more blocks than tensors": {"num_blocks": 500_000},
    "more levels than tensors": {"channel_mult": [1] * 1000},
    "a long list": {"channel_mult": [1] * 2000},
    "a huge width": {"model_channels": 1_000_000},
    "a huge factor": {"channel_mult": [1e300, 1]},
    "no finite number": {"dropout": float("nan")},
    "a nested number": {"channel_mult": [[10**30]]},
    "other widths": {"model_channels": 16},
    "no width": {"model_channels": 0},
    "more classes": {"label_dim": 1_000_000},
    "text for a number": {"model_channels": "x" * 1000},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_configs_that_their_weights_do_not_bear_out(claim: str, model: Path) -> None:
    edit(model / "network" / "config.json", **CLAIMS[claim])
    message = refused(model)
    assert "fetch or save the model again" in message or "check the config" in message


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"sampler": {"schedule": {"name": "karras", "num_steps": 10**12}}}, "at most 100,000"),
        ({"preconditioning": {"name": "vp", "M": 10**9}}, "M must be >= 1 and <= 100000"),
        ({"preconditioning": {"name": "iddpm", "M": 10**9}}, "M must be >= 1 and <= 100000"),
        ({"preconditioning": {"name": "edm", "sigma_data": "x"}}, "sigma_data"),
        ({"family": ["x" * 10_000]}, "none of generators"),
        ({"network": ["genlab.networks." + "x" * 10_000, "DiT"]}, "update GenLab"),
        ({"network": ["genlab.networks.dit\0", "DiT"]}, "lacks"),
        ({"network": ["genlab.networks.base", "Network"]}, "do not fit|cannot be"),
        ({"class_names": ["a"]}, "1 class names for a model of 3 classes"),
    ],
)
def test_facts_out_of_bounds(metadata: dict[str, Any], message: str, model: Path) -> None:
    edit(model / "model_index.json", **metadata)
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(refused(model))


def test_quantized_weights_are_refused_by_name(model: Path) -> None:
    config = model / "network" / "config.json"
    edit(config, quantization_config={"quant_method": "bitsandbytes"})
    assert "the network in" in refused(model)
    assert "is quantized, which GenLab does not read; save the model in float32" in refused(model)


def test_weights_in_shards_are_compared_too(model: Path) -> None:
    network = model / "network"
    whole = network / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, network / file, {"format": "pt"})
    places = {name: file for file, held in shards.items() for name in held}
    index = network / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert genlab.load(str(model)).num_classes == 3
    edit(network / "config.json", num_blocks=300_000)
    assert "claims more layers than the file has tensors for" in refused(model)
    edit(index, weight_map=dict.fromkeys(names, "../a.safetensors"))
    assert "outside its folder" in refused(model)


def test_names_from_files_are_printable(model: Path, shared: Path) -> None:
    hostile = ["\x1b]0;pwned\x07\x1b[31mred", "a\nb", "x" * 2_000_000]
    edit(model / "model_index.json", class_names=hostile)
    generator = genlab.load(str(model))
    assert generator.class_names is not None
    for name in generator.class_names:
        assert name.isprintable()
        assert len(name) <= 300
    assert generator.class_names[1] == r"a\nb"


def test_honest_networks_stay_far_below_the_bound(tiny_generator: DiffusionGenerator) -> None:
    """Half the parts allowed are not needed by any network of ours, tiny or not."""
    from genlab.saving import claims

    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1

    hooks = [
        register(count)
        for register in (
            nn.modules.module.register_module_module_registration_hook,
            nn.modules.module.register_module_parameter_registration_hook,
            nn.modules.module.register_module_buffer_registration_hook,
        )
    ]
    try:
        for name, options in {
            "DiT": {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 2,
                    "hidden_size": 8, "depth": 3, "num_heads": 2, "patch_size": 2},
            "SongUNet": {"img_resolution": 8, "in_channels": 1, "out_channels": 1,
                         "label_dim": 2, "model_channels": 8},
            "BigGANGenerator": {"img_resolution": 32, "num_classes": 2, "channels": 2},
            "PixelCNNPP": {"img_resolution": 8, "in_channels": 1, "num_filters": 4},
            "GatedPixelCNN": {"img_resolution": 4, "label_dim": 2, "num_levels": 4,
                              "channels": 4, "num_layers": 3},
        }.items():  # fmt: skip
            made = 0
            with torch.device("meta"):
                network = getattr(genlab.networks, name)(**options)
            assert made < 0.5 * claims.PARTS_PER_TENSOR * len(network.state_dict()), name
    finally:
        for hook in hooks:
            hook.remove()


def test_numbers_at_the_bound() -> None:
    check_config({"a": LARGEST, "b": [LARGEST, -LARGEST], "c": True, "d": ["x"] * 100_000}, "x")
    with pytest.raises(CheckpointError, match="x claims b = 1000001, more than any network has"):
        check_config({"b": {"c": [LARGEST + 1], "b": LARGEST + 1}}, "x")


def test_a_constructor_that_fails() -> None:
    def fail() -> nn.Module:
        raise IndexError("list index out of range")

    with pytest.raises(CheckpointError, match=r"^w\.pt cannot be built: list index out of range"):
        build_empty(fail, 3, "w.pt")
