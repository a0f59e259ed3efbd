"""Files in which torch.compile, DataParallel or a training script's class wrapped the network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import official_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

import genlab
from genlab.checkpoints.weights import own_names, read_state_dict

WRAPPERS = ("_orig_mod.", "module._orig_mod.", "model.", "_orig_mod.module.", "module.model.")

FAMILIES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "dit_tiny": ("dit", {"num_heads": 3}),
    "sit_tiny": ("sit", {"num_heads": 3}),
    "adm_unet_plain": ("guided-diffusion", None),
    "adm_classifier_attention": ("guided-diffusion-classifier", None),
    "biggan_D32": ("biggan-pytorch", {}),
    "biggan_G32_hier": ("biggan-pytorch", {}),
    "bigganDeep_G64": ("biggan-pytorch", {}),
    "bigganDeep_D64": ("biggan-pytorch", {}),
    "biggan_deep_hf": ("biggan-deep-hf", None),
    "pixelcnnpp_gray": ("pixelcnn++", {"obs": (1, 8, 8)}),
    "gated_pixelcnn": ("gated-pixelcnn", {}),
}
"""Golden case -> format and config; None takes the case's own."""


def _config(case: Path, config: dict[str, Any] | None) -> dict[str, Any]:
    if config is not None:
        return config
    meta = json.loads((case / "meta.json").read_text())
    return meta["config"] if "config" in meta else meta["constructors"]["net"]


def _weights(product: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = product.network.state_dict()
    return state


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read(name: str, shared: Path, tmp_path: Path) -> None:
    case = shared / "golden" / name
    if not case.is_dir():
        pytest.skip(f"no golden case {name}")
    format_, config = FAMILIES[name]
    arguments = _config(case, config)
    state = load_file(case / "weights.safetensors")
    plain = _weights(genlab.convert(case / "weights.safetensors", format_, arguments))
    for number, wrapper in enumerate(WRAPPERS[:3]):
        file = tmp_path / f"{name[:3]}-{number}.safetensors"
        save_file({f"{wrapper}{key}": value for key, value in state.items()}, file)
        found = _weights(genlab.convert(file, format_, arguments))
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[key], value) for key, value in plain.items())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_edm_with_its_table_of_noise_levels(wrapper: str, tmp_path: Path) -> None:
    """The network is one part of EDM's module, the table ``u`` stands beside it."""
    kwargs, weights = official_weights("iDDPMPrecond", M=20, model_type="SongUNet")
    arguments = {"cls": "iDDPMPrecond", **kwargs}
    save_file(weights, tmp_path / "plain.safetensors")
    wrapped = {f"{wrapper}{name}": value for name, value in weights.items()}
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    plain, found = (
        _weights(genlab.convert(tmp_path / f"{name}.safetensors", config=arguments))
        for name in ("plain", "wrapped")
    )
    assert all(torch.equal(found[key], value) for key, value in plain.items())


def test_a_compiled_part_of_a_network(tmp_path: Path) -> None:
    state = {"u": torch.ones(1), "model._orig_mod.enc.w": torch.ones(2)}
    assert list(own_names(state)) == ["u", "model.enc.w"]
    sharded = {"blocks.0._fsdp_wrapped_module.attn._checkpoint_wrapped_module.w": torch.ones(2)}
    torch.save(sharded, tmp_path / "w.pt")
    assert list(read_state_dict(tmp_path / "w.pt")) == ["blocks.0.attn.w"]


def test_names_that_would_become_one_stay() -> None:
    state = {"_orig_mod.w": torch.ones(1), "w": torch.zeros(1)}
    assert own_names(state) == state


def test_official_compiled_dit(shared: Path) -> None:
    """The same network, compiled or not, gives the official outputs; class 10 of 10 is none."""
    cases = shared / "cases" / "checkpoints"
    if not cases.is_dir():
        pytest.skip("no cases")
    expected = torch.load(cases / "dit-expected.pth")
    labels = torch.where(expected["y"] == 10, -1, expected["y"])
    for name in ("dit-latent-10.pt", "dit-compiled.pt"):
        product: Any = genlab.convert(cases / name, "dit", {"num_heads": 3})
        network = product.network
        with torch.no_grad():
            out = network(expected["x"], expected["t"].float(), network.embed_labels(labels))
        torch.testing.assert_close(out, expected["out"], rtol=1e-4, atol=1e-5)
