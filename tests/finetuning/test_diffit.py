"""DiffFit: where its vectors stand, on which blocks, on whose networks."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from tunable_networks import TRANSFORMERS, build, call

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.diffit import DiffFit
from genlab.finetuning.methods.norms import NormTuning
from genlab.finetuning.methods.scales import scale_name
from genlab.networks.biggan import BigGANGenerator

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_vectors_stand_in_the_first_half_rounded_up(name: str) -> None:
    network = build(name)
    layout = layout_of(network)
    assert len(layout.blocks) == 3
    names = DiffFit().prepare(network)
    expected = [
        scale_name(branch) for branch in layout.branches if branch.block != layout.blocks[2]
    ]
    assert len(expected) == 4
    assert set(expected) == {each for each in names if each not in other_groups(network)}
    assert all(bool((network.get_parameter(each) == 1).all()) for each in expected)


def other_groups(network: nn.Module) -> set[str]:
    groups = layout_of(network).groups
    return {*groups["bias"], *groups["norm"], *groups["class"]}


@pytest.mark.parametrize(
    ("blocks", "stand_in"),
    [("all", {0, 1, 2}), ("none", set()), ([], set()), ([0, -1], {0, 2}), ([1], {1})],
)
def test_blocks_are_an_option(blocks: object, stand_in: set[int]) -> None:
    network = build("dit")
    names = DiffFit(blocks=blocks).prepare(network)
    assert {int(name.split(".")[1]) for name in names if "gamma" in name} == stand_in


def test_a_block_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"there is no block 3: the network has 3, 0 \.\.\. 2"):
        DiffFit(blocks=[0, 3]).prepare(build("dit"))


def test_no_matrix_trains() -> None:
    network = build("dit")
    names = DiffFit().prepare(network)
    matrices = [name for name in names if network.get_parameter(name).dim() > 1]
    assert matrices == ["y_embedder.embedding_table.weight"]


def test_what_was_done_is_said() -> None:
    network = build("dit")
    method = DiffFit()
    method.prepare(network)
    assert method.notes(network) == [
        "4 scale vectors stand in 2 of 3 blocks, the first half (rounded up)",
        "7 of 7 normalisations had no parameters and were given a weight of 1 and a bias of 0",
    ]
    own = build("own")
    NormTuning().prepare(own)
    assert NormTuning().notes(own) == []


def test_spectrally_normalised_layers_are_refused() -> None:
    network = BigGANGenerator(32, num_classes=3, channels=8, dim_z=20)
    with pytest.raises(ConfigError, match=r"is a SpectralConv2d: leave its block out"):
        DiffFit().prepare(network)
    names = DiffFit(blocks="none").prepare(network)
    assert names


def test_the_example_of_the_documentation() -> None:
    pages = [page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("finetuning/*.md"))]
    blocks = re.findall(r"^```python\n(.*?)^```", "\n".join(pages), re.M | re.S)
    [example] = [block for block in blocks if "LAYOUTS.register" in block]
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example, "example", "exec"), names)  # noqa: S102 - our own page
    biases = [f"layers.{number}.bias" for number in range(4)]
    assert names["trained"] == [
        *(biases[0], "layers.0.gamma"),
        *(biases[1], "layers.1.gamma"),
        *biases[2:],
    ]
    network = names["network"]
    assert isinstance(network, nn.Module)
    assert len(dict(network.named_parameters())) == 8


def test_a_network_that_tells_nothing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"torch\.nn\.modules\.linear\.Linear does not tell its"):
        DiffFit().prepare(nn.Linear(2, 2))


@torch.no_grad()
def test_diffusers_own_network_stays_savable(tmp_path: Path) -> None:
    network = build("theirs")
    method = DiffFit()
    names = method.prepare(network)
    for name in names:
        network.get_parameter(name).add_(0.1)
    x, level, labels = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0]), torch.tensor([0, 9])
    method.merge(network).save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(network).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert torch.equal(call(again, x, level, labels), call(network, x, level, labels))
