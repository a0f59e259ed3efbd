"""Counts of the field's tables, and memory against what a step takes."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from genlab.cli import main
from genlab.errors import ConfigError, GenLabError, UnknownNameError
from genlab.finetuning.bases import resolve_base
from genlab.finetuning.costs import count_parameters, dry_run_report, estimate_memory
from genlab.finetuning.memory import step_memory
from genlab.finetuning.methods.base import METHODS
from genlab.networks import DiT

TABLE: list[tuple[list[str], int]] = [
    (["diffit"], 770_720),
    (["diffit", "method.blocks=none"], 738_464),
    (["diffit", "method.blocks=half"], 770_720),
    (["diffit", "method.blocks=all"], 802_976),
    (["bitfit"], 607_136),
    (["norm"], 248_832),
    (["lora", "method.r=8"], 1_149_696),
    (["lora", "method.r=16"], 2_181_888),
    (["lora", "method.r=8", "method.targets=attention"], 1_665_792),
    (["lora", "method.r=16", "method.targets=attention"], 3_214_080),
    (["adapter"], 4_280_320),
    (["class-table"], 117_504),
    (["full"], 673_799_072),
]
"""Methods on a DiT-XL/2 of 101 classes: counted on the official class, or arithmetic that gives the
papers' rounded numbers."""

BUILT_IN = {"peft": {"config": {"peft_type": "LOHA", "target_modules": ["attn.qkv"], "r": 4}}}
"""Options without which a method cannot be built."""


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["finetune", *arguments, "--dry-run", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.parametrize(("method", "trainable"), TABLE)
def test_counts_are_those_of_the_papers(
    method: list[str], trainable: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = method
    told = dry_run(capsys, "DiT-XL/2", "--num-classes", "101", "--method", name, *options)
    assert told["trainable_parameters"] == trainable
    assert sum(group["trainable"] for group in told["groups"].values()) == trainable
    assert sum(group["parameters"] for group in told["groups"].values()) == told["parameters"]
    assert told["share"] == pytest.approx(trainable / told["parameters"])
    assert told["stored_bytes"] == {"float32": 4 * trainable, "float16": 2 * trainable}
    assert (told["base"], told["num_classes"]) == ("DiT-XL/2", 101)


@pytest.mark.parametrize("name", METHODS.in_order())
def test_every_method_is_counted_and_estimated(name: str) -> None:
    report = dry_run_report("dit-fmnist-s", {"name": name, **BUILT_IN.get(name, {})}, 3)
    assert 0 < report.counts.trainable_parameters <= report.counts.parameters
    groups = report.counts.groups.values()
    assert sum(group.trainable for group in groups) == report.counts.trainable_parameters
    assert report.counts.groups["class"].trainable in (0, 4 * 96)
    assert report.memory.total > report.memory.weights > 0
    assert json.loads(json.dumps(report.to_json()))["method"]["name"] == name


def test_groups_are_named_for_what_was_added() -> None:
    wanted = {"diffit": "scale", "lora": "lora", "adapter": "adapter", "vpt": "vpt"}
    for name, added in wanted.items():
        counts = dry_run_report("DiT-S/8", {"name": name}, 10).counts
        assert counts.groups[added].trainable == counts.groups[added].parameters > 0
        assert counts.groups["class"].trainable == 11 * 384
    # Blocks of width 384: 12, two normalisations each, and the last one.
    assert dry_run_report("DiT-S/8", {"name": "diffit"}).counts.groups["norm"].parameters == (
        25 * 2 * 384
    )


@pytest.mark.parametrize(
    "name", ["edm-fmnist", "adm-imagenet-64x64", "biggan-fmnist", "pixelcnnpp-fmnist"]
)
def test_all_families_are_estimated(name: str) -> None:
    report = dry_run_report(name, {"name": "bitfit"}, 5, batch_size=4)
    assert report.memory.activations > report.memory.gradients >= 0
    assert 0 < report.counts.share < 0.05


def test_the_table_tells_what_json_does() -> None:
    report = dry_run_report("DiT-XL/2", {"name": "diffit"}, 101, batch_size=8)
    table = report.table(width=90)
    for text in ("770,720", "scale", "32,256", "0.114%", "8 images at a time", "the first half"):
        assert text in " ".join(table.split())
    assert f"{report.memory.total / 2**20:,.1f}" in table
    assert max(map(len, table.splitlines())) <= 90
    assert "bias" in table
    assert "modulation" not in table, "what does not train has no row"


def test_parts_of_the_estimate_follow_the_arithmetic() -> None:
    full, diffit = (
        dry_run_report("DiT-B/4", {"name": name}, 10, averages=2).memory
        for name in ("full", "diffit")
    )
    network = resolve_base("DiT-B/4", num_classes=10).network
    counts = count_parameters(network, METHODS.build("full"))
    buffers = 4 * sum(buffer.numel() for buffer in network.buffers())
    trained = 4 * counts.trainable_parameters
    assert full.weights == trained + buffers + trained
    assert full.optimizer == 2 * trained
    assert full.averages == 3 * trained
    assert diffit.weights < 1.01 * (full.weights - trained)
    assert diffit.activations < full.activations
    assert diffit.total < 0.5 * full.total


def test_savings_of_memory_show() -> None:
    def activations(**settings: Any) -> int:
        report = dry_run_report("DiT-B/4", {"name": "diffit"}, 10, **settings)
        return report.memory.activations

    plain = activations(batch_size=64)
    assert activations(batch_size=64, gradient_checkpointing=True) < 0.3 * plain
    assert activations(batch_size=64, mixed_precision="bf16") < 0.85 * plain
    assert activations(batch_size=64, gradient_accumulation=4) < 0.3 * plain
    assert activations(batch_size=128) == pytest.approx(2 * plain, rel=0.02)


MEASURED = """
import sys, torch
from genlab.finetuning.methods.base import METHODS
from genlab.networks import DiT

def read(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))

method, checkpointing, batch_size = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
network = DiT(**eval(sys.argv[4]))
METHODS.build(method).prepare(network)
if checkpointing:
    network.enable_gradient_checkpointing()

def step(count):
    x = torch.randn(count, 3, 32, 32)
    labels = torch.zeros(count, dtype=torch.int64)
    out = network.train()(x, torch.rand(count), network.embed_labels(labels))
    (out - x).square().sum().backward()
    network.zero_grad(set_to_none=True)

step(1)
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
before = read("VmRSS")
step(batch_size)
print(read("VmHWM") - before)
"""

SIZES: dict[str, Any] = {
    "img_resolution": 32,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 10,
    "hidden_size": 192,
    "depth": 4,
    "num_heads": 3,
}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own measure of a peak")
@pytest.mark.parametrize(
    ("method", "checkpointing"), [("full", False), ("diffit", False), ("full", True)]
)
def test_the_estimate_is_near_the_measured_peak(method: str, checkpointing: bool) -> None:
    batch_size = 16 if checkpointing else 8
    # Large blocks go back to the system at once, so that what is in use is what counts.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    arguments = [method, str(checkpointing), str(batch_size), repr(SIZES)]
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = int(run.stdout)
    with torch.device("meta"):
        network = DiT(**SIZES)
    METHODS.build(method).prepare(network)
    memory = step_memory(network, (3, 32, 32), batch_size, gradient_checkpointing=checkpointing)
    estimated = memory.activations + memory.gradients
    # Libraries and the allocator take some 10 MB beside, whatever the size of the step.
    assert 0.9 * measured - 12e6 < estimated < 1.05 * measured


def test_nothing_is_left_on_the_network() -> None:
    network = resolve_base("dit-fmnist-s").network
    METHODS.build("bitfit").prepare(network)
    first = step_memory(network, (1, 32, 32), 4)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert step_memory(network, (1, 32, 32), 4) == first


def test_memory_of_weights_in_memory_is_not_estimated() -> None:
    network = DiT(**SIZES)
    with pytest.raises(ConfigError, match="lies on cpu"):
        estimate_memory(network, (3, 32, 32), plain_bytes=0, batch_size=1)


@pytest.mark.parametrize(
    ("base", "method", "options", "error", "named"),
    [
        ("dit-fmnist-s", {"name": "diffitt"}, {}, UnknownNameError, "did you mean 'diffit'"),
        ("dit-fmnist-s", {"name": "lora", "r": 0}, {}, ConfigError, "r"),
        ("dit-fmnist-s", {"name": "diffit", "blocks": [9]}, {}, ConfigError, "no block 9"),
        ("dit-fmnist-s", {"name": "diffit"}, {"mixed_precision": "fp8"}, ConfigError, "fp8"),
        ("pixelcnnpp-fmnist", {"name": "bitfit"}, {"gradient_checkpointing": True}, ConfigError,
         "has none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(
    base: str, method: dict[str, Any], options: dict[str, Any], error: type[GenLabError], named: str
) -> None:
    with pytest.raises(error, match=named):
        dry_run_report(base, method, **options)
