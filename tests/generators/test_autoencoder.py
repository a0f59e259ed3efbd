"""The autoencoder's wrapper against diffusers' own calls."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_autoencoder import tiny_deterministic, tiny_kl

from genlab.diffusion.noise import NoiseStream
from genlab.errors import CheckpointError, ConfigError
from genlab.generators.autoencoder import Autoencoder


def images(channels: int = 1, count: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 8, 8) * 2 - 1


def test_scale_is_applied() -> None:
    """`encode` and `decode` of diffusers leave it to the caller."""
    autoencoder, x = tiny_kl(shift_factor=0.25), images()
    model: Any = autoencoder.model
    with torch.no_grad():
        gaussian = model.encode(x).latent_dist
        decoded = model.decode(gaussian.mean).sample
    encoded = autoencoder.encode(x)
    assert encoded.std is not None
    torch.testing.assert_close(encoded.mean, (gaussian.mean - 0.25) * 0.5)
    torch.testing.assert_close(encoded.std, gaussian.std * 0.5)
    torch.testing.assert_close(autoencoder.decode(encoded.mean), decoded)


def test_scale_of_each_channel() -> None:
    whole = tiny_kl()
    normalised = tiny_kl(latents_mean=[0.5, -0.5], latents_std=[2.0, 4.0])
    x = images()
    plain, scaled = whole.encode(x).mean / 0.5, normalised.encode(x).mean
    expected = (plain - torch.tensor([0.5, -0.5])[:, None, None]) * torch.tensor([0.25, 0.125])[
        :, None, None
    ]
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(normalised.decode(scaled), whole.decode(plain * 0.5))


def test_samples_come_from_each_images_own_stream() -> None:
    encoded = tiny_kl().encode(images())
    assert encoded.std is not None
    both = encoded.sample(NoiseStream([5, 6, 7]))
    alone = encoded.mean[1] + encoded.std[1] * NoiseStream([6]).randn(encoded.mean.shape[1:])[0]
    assert torch.equal(both[1], alone)


def test_deterministic_encoder_draws_nothing() -> None:
    autoencoder, x = tiny_deterministic(), images(3)
    encoded = autoencoder.encode(x)
    assert encoded.std is None
    stream = NoiseStream([1, 2, 3])
    assert torch.equal(encoded.sample(stream), encoded.mean)
    assert torch.equal(stream.randn((2,)), NoiseStream([1, 2, 3]).randn((2,)))
    assert autoencoder.decode(encoded.mean).shape == x.shape
    assert autoencoder.latent_shape((3, 8, 8)) == (4, 4, 4)


def test_decoding_is_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_kl()
    sliced = Autoencoder(whole.model, slice_pixels=2 * 64)
    latents = torch.randn(5, 2, 4, 4)
    sizes: list[int] = []
    decoder: Any = whole.model.decoder
    hook = decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents))
    hook.remove()
    assert sizes == [2, 2, 1, 5]


def test_shapes() -> None:
    autoencoder = tiny_kl()
    assert autoencoder.latent_shape((1, 8, 12)) == (2, 4, 6)
    assert autoencoder.image_shape((2, 4, 6)) == (1, 8, 12)
    with pytest.raises(ConfigError, match="images of 7x8 cannot be encoded"):
        autoencoder.encode(torch.zeros(1, 1, 7, 8))
    with pytest.raises(ConfigError, match="made for images of 1 channels, these have 3"):
        autoencoder.latent_shape((3, 8, 8))
    with pytest.raises(ConfigError, match="latents of 2 channels, these have 4"):
        autoencoder.decode(torch.zeros(1, 4, 4, 4))


def test_dtype() -> None:
    """One that overflows in float16 says so in its config, and is left in float32."""
    assert tiny_kl(force_upcast=True).to(dtype=torch.float16).dtype == torch.float32
    half = tiny_kl(force_upcast=False).to(dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.decode(torch.randn(1, 2, 4, 4)).dtype == torch.float32
    assert half.to("cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["cast", "autocast"])
def test_one_that_overflows_computes_in_float32_whatever_is_done_to_it(how: str) -> None:
    autoencoder, latents = tiny_kl(force_upcast=True), 1e6 * torch.randn(1, 2, 4, 4)
    images = 1e6 * torch.randn(1, 1, 8, 8)
    # What a cast rounds off is lost for good: compare with weights that it keeps.
    for parameter in autoencoder.model.parameters():
        parameter.data = parameter.data.half().float()
    expected = autoencoder.decode(latents), autoencoder.encode(images).mean
    if how == "cast":
        autoencoder.model.to(dtype=torch.float16)  # as a pipeline does with all its models
    with torch.autocast("cpu", torch.float16, enabled=how == "autocast"):
        assert torch.equal(autoencoder.decode(latents), expected[0])
        assert torch.equal(autoencoder.encode(images).mean, expected[1])
    assert all(part.isfinite().all() for part in expected)


def test_identity_and_folder(tmp_path: Path) -> None:
    autoencoder = tiny_kl()
    autoencoder.save_pretrained(tmp_path / "vae")
    loaded = Autoencoder.from_pretrained(tmp_path / "vae")
    assert loaded.sha256() == autoencoder.sha256()
    latents = torch.randn(2, 2, 4, 4)
    assert torch.equal(loaded.decode(latents), autoencoder.decode(latents))
    assert tiny_kl(seed=9).sha256() != autoencoder.sha256()
    assert tiny_kl(scaling_factor=0.25).sha256() != autoencoder.sha256()
    AutoencoderKL.from_pretrained(tmp_path / "vae")  # diffusers reads it, too


def test_foreign_classes_are_refused(tmp_path: Path) -> None:
    other: Any = UNet2DModel
    with pytest.raises(ConfigError, match="not UNet2DModel"):
        Autoencoder(other(block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                up_block_types=("UpBlock2D",), norm_num_groups=4))  # fmt: skip
    folder = tmp_path / "vae"
    tiny_kl().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "os.system"}))
    with pytest.raises(CheckpointError, match=r"names the class 'os\.system'; wanted is one of"):
        Autoencoder.from_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="must be a JSON object"):
        Autoencoder.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Autoencoder.from_pretrained(tmp_path)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    tiny_kl().save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"the autoencoder in .* cannot be read"):
        Autoencoder.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="a file is missing"):
        Autoencoder.from_pretrained(folder)
    tiny_kl(layers_per_block=2).save_pretrained(tmp_path / "larger")
    weights.write_bytes((tmp_path / "larger" / weights.name).read_bytes())
    with pytest.raises(CheckpointError, match="do not fit its config"):
        Autoencoder.from_pretrained(folder)
    with pytest.raises(ConfigError, match="scaling_factor > 0"):
        tiny_kl(scaling_factor=0.0)


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Attention of autoencoders as diffusers names it -> as files on the hub still do."""


def test_old_names_of_attention(tmp_path: Path) -> None:
    """The autoencoder of Stable Diffusion and DiT is stored so."""
    autoencoder = tiny_kl()
    autoencoder.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    stored = {}
    for name, tensor in load_file(path).items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.")
        stored[name] = tensor.clone()
    assert sum("query" in name for name in stored) == 4  # weight and bias, encoder and decoder
    save_file(stored, path, {"format": "pt"})
    latents = torch.randn(2, 2, 4, 4)
    read = Autoencoder.from_pretrained(tmp_path)
    assert torch.equal(read.decode(latents), autoencoder.decode(latents))
