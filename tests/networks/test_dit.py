"""DiT: published sizes, official layout, labels, positions, hyper-connections."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.errors import ConfigError, LabelError
from genlab.networks import DiT, dit
from genlab.networks.layers.initialised import Init, TokenLinear

SMALL: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 4,
    "out_channels": 8,
    "label_dim": 4,
    "hidden_size": 32,
    "depth": 3,
    "num_heads": 2,
}


def alive(**changes: Any) -> DiT:
    """A small network in eval mode whose every weight matters: fresh ones have silent layers."""
    network = DiT(**{**SMALL, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *[("S_2", 32.87), ("B_2", 130.32), ("L_2", 457.84), ("XL_2", 674.83)],
        *[("XL_4", 675.00), ("XL_8", 675.66)],
    ],
)
def test_sizes_are_those_of_the_paper(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = getattr(dit, f"DiT_{name}")(
            img_resolution=32, in_channels=4, out_channels=8, label_dim=1000
        )
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("case", ["dit_tiny", "dit_patch4_posembed", "dit_no_null_class"])
def test_names_and_shapes_are_those_of_official_checkpoints(shared: Path, case: str) -> None:
    meta = json.loads((shared / "golden" / case / "meta.json").read_text())
    kwargs = meta["constructors"]["net"]["kwargs"]
    network = DiT(
        img_resolution=kwargs["input_size"],
        in_channels=kwargs["in_channels"],
        out_channels=kwargs["in_channels"] * (1 + kwargs["learn_sigma"]),
        label_dim=kwargs["num_classes"],
        null_class=kwargs["class_dropout_prob"] > 0,
        **{key: kwargs[key] for key in ("patch_size", "hidden_size", "depth", "num_heads")},
        mlp_ratio=kwargs["mlp_ratio"],
    )
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == meta["weight_tensors"]["weights"]


@torch.no_grad()
def test_an_untrained_network_says_nothing_at_all() -> None:
    network = DiT(**SMALL)
    assert not network(torch.randn(2, 4, 8, 8), torch.tensor([0.0, 500.0])).any()


def test_rows_of_weights_weigh_the_rows_of_the_table() -> None:
    network = alive()
    assert network.y_embedder is not None
    table = network.y_embedder.embedding_table.weight
    rows = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    expected = torch.stack([0.25 * table[0] + 0.75 * table[1], table[4], table[3]])
    torch.testing.assert_close(network.embed_labels(rows), expected)
    classes = torch.tensor([3, -1, 0])
    for labels, found in ((classes, table[[3, 4, 0]]), (None, table[4:])):
        torch.testing.assert_close(network.embed_labels(labels), found, rtol=0, atol=0)


@pytest.mark.parametrize("labels", [None, torch.tensor([1, -1]), torch.zeros(1, 4)])
def test_a_table_without_null_class_refuses_it(labels: torch.Tensor | None) -> None:
    network = alive(null_class=False)
    assert network.embed_labels(torch.tensor([0, 3])) is not None
    with pytest.raises(LabelError, match="no null class"):
        network.embed_labels(labels)


def test_positions_of_a_larger_grid_lie_between_those_of_the_trained_one() -> None:
    small = dit.sin_cos_positions(16, 4, 4).unflatten(0, (4, 4))
    large = dit.sin_cos_positions(16, 8, 8, trained_grid=4).unflatten(0, (8, 8))
    torch.testing.assert_close(large[::2, ::2], small)  # (2i, 2j) stands at (i, j)
    wide = dit.sin_cos_positions(16, 4, 8, trained_grid=4).unflatten(0, (4, 8))
    torch.testing.assert_close(wide[:, ::2], small)


@torch.no_grad()
def test_a_network_for_larger_images_is_the_smaller_one_on_larger_images() -> None:
    small = alive()
    large = DiT(**{**SMALL, "img_resolution": 16}, position_resolution=8).eval()
    state = {k: v for k, v in small.state_dict().items() if k != "pos_embed"}
    large.load_state_dict(state, strict=False)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 700.0])
    assert torch.equal(large(x, t), small(x, t))
    assert small(x[:, :, :4], t).shape == (2, 8, 4, 16)
    with pytest.raises(ConfigError, match="15x16 cannot be cut into patches of 2"):
        small(x[..., :15], t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_of_another_size_are_made_once_for_a_device_and_dtype(dtype: torch.dtype) -> None:
    network = alive()
    for device in ("cpu", "meta"):
        tokens = torch.zeros(2, 8, network.hidden_size, dtype=dtype, device=device)
        table = network._position_table(2, 4, tokens)
        assert (table.device, table.dtype) == (tokens.device, dtype)
        assert network._position_table(2, 4, tokens) is table


@torch.no_grad()
def test_parts_in_bfloat16_compute_in_it() -> None:
    """A generator moves the parts of a network; the positions belong to the whole."""
    network = alive()
    for part in network.children():
        part.bfloat16()
    assert network.pos_embed.dtype == torch.float32
    out = network(torch.randn(2, 4, 8, 8).bfloat16(), torch.tensor([3.0, 700.0]))
    assert out.dtype == torch.bfloat16


@torch.no_grad()
def test_tokens_far_apart_see_each_other_and_positions_matter() -> None:
    network = alive()
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([10.0])
    reference = network(x, t)
    x[0, :, :2, :2] += 1
    assert (network(x, t) - reference)[0, :, 6:, 6:].abs().max() > 1e-4
    assert not torch.allclose(network(x.flip(3), t).flip(3), network(x, t), atol=1e-3)


@torch.no_grad()
def test_hyper_connections_start_as_the_plain_network() -> None:
    plain = alive()
    connected = DiT(**SMALL, num_streams=2).eval()
    missing, unexpected = connected.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".hyper_" in name for name in missing)
    added = sum(p.numel() for p in connected.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert added == 2 * 3 * (2 + 2 + 4)  # attention and MLP in each block
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    torch.testing.assert_close(connected(x, t), plain(x, t), rtol=1e-5, atol=1e-5)


def test_every_hyper_connection_learns() -> None:
    network = alive(num_streams=2)
    network(torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0])).square().sum().backward()
    for name, parameter in network.named_parameters():
        if ".hyper_" in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().min() > 0, name


@torch.no_grad()
def test_products_written_as_convolutions_are_the_same() -> None:
    layer = TokenLinear(48, 96, init=Init("xavier_uniform", bias=1.0))
    x = torch.randn(3, 20, 48)
    expected = layer(x)
    layer.use_convolution = True
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(x).is_contiguous()
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"patch_size": 3}, "img_resolution 8 .* patches of 3"),
        ({"position_resolution": 9}, "position_resolution 9"),
        ({"hidden_size": 34}, "multiple of 4"),
        ({"num_heads": 3}, "num_heads, got 32 and 3"),
        ({"depth": 0}, "depth"),
        ({"num_streams": 0}, "num_streams"),
    ],
)
def test_bad_arguments_name_the_cure(change: dict[str, Any], cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        DiT(**{**SMALL, **change})
