"""LoRA and peft's other methods: what they train, merge, save, and exchange with peft."""

import builtins
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from tunable_networks import BUILDERS, Pictures, build

from genlab import compute
from genlab.errors import CheckpointError, ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.base import METHODS, Method
from genlab.finetuning.methods.lora import LoRA
from genlab.finetuning.methods.peft_method import (
    PeftMethod,
    ThroughPeft,
    exact_targets,
    peft_model,
    switched_off,
)
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.dit import DiT_XL_2
from genlab.networks.layers.spectral_norm import remove_spectral_norm

TARGETS = {"own": "convolution"}
"""Networks without attention -> what LoRA adapts in them."""

KIN: dict[str, ThroughPeft] = {
    "lora": LoRA(r=2),
    "rslora": LoRA(r=4, alpha=2, rslora=True, targets="attention"),
    "dora": LoRA(r=2, dora=True, targets="all"),
    "patterns": LoRA(
        targets=["attention", "mlp"],
        rank_pattern={"blocks.1.attn.qkv": 3},
        alpha_pattern={"fc2": 5},
    ),
    "table": LoRA(targets=["qkv", "embedding_table"], class_table=False),
    "loha": PeftMethod(config={"peft_type": "LOHA", "r": 2, "target_modules": ["attn.qkv"]}),
    "lokr": PeftMethod(config={"name": "LoKr", "r": 2, "target_modules": ["attn.proj", "fc1"]}),
    "oft": PeftMethod(
        config={"name": "oft", "r": 0, "oft_block_size": 4, "target_modules": ["attn.qkv"]}
    ),
    "vera": PeftMethod(config={"name": "vera", "r": 2, "target_modules": ["attn.proj"]}),
    "ia3": PeftMethod(
        config={"name": "ia3", "target_modules": ["attn.qkv"], "feedforward_modules": []}
    ),
    "all-linear": PeftMethod(config={"name": "lora", "r": 1, "target_modules": "all-linear"}),
    "bias": PeftMethod(
        config={"peft_type": "LORA", "r": 2, "bias": "lora_only", "target_modules": ["attn.proj"]}
    ),
}


@pytest.fixture(scope="module")
def pictures(fashion_mnist: Path) -> Pictures:
    return Pictures.read(fashion_mnist)


@pytest.fixture(params=KIN, name="method")
def method_of(request: pytest.FixtureRequest) -> ThroughPeft:
    return KIN[request.param]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1_149_696),
        ({"r": 16}, 2_181_888),
        ({"targets": ["attn.qkv", "attn.proj"]}, 1_665_792),
        ({"targets": "attention", "r": 16}, 3_214_080),
        ({"class_table": False}, 1_149_696 - 117_504),
    ],
)
def test_counts_on_dit_xl_2_with_101_classes(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = DiT_XL_2(img_resolution=32, in_channels=4, out_channels=8, label_dim=101)
    names = METHODS.build("lora", **options).prepare(network)
    trained = [item for item in network.named_parameters() if item[1].requires_grad]
    assert [name for name, _ in trained] == names
    assert sum(parameter.numel() for _, parameter in trained) == count
    assert all(parameter.is_meta for parameter in network.parameters())  # nothing was allocated


@pytest.mark.parametrize("name", BUILDERS)
def test_networks_keep_their_output_until_they_train(name: str, pictures: Pictures) -> None:
    network = build(name)
    base, keys = copy.deepcopy(network).requires_grad_(False), list(network.state_dict())
    method = LoRA(r=2, targets=TARGETS.get(name, "qkv"))
    names = method.prepare(network)
    with torch.no_grad():
        assert torch.equal(pictures.predict(network), pictures.predict(base))
    pictures.train(network, names, steps=2)
    with torch.no_grad():
        expected = pictures.predict(network)
        assert relative(expected, pictures.predict(base)) > 1e-2
        with switched_off(network):
            assert torch.equal(pictures.predict(network), pictures.predict(base))
        merged = method.merge(network)
        assert relative(pictures.predict(merged), expected) < 1e-5
    assert merged is network
    assert list(merged.state_dict()) == keys
    for path, module in base.named_modules():
        assert type(merged.get_submodule(path)) is type(module)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not hasattr(merged, "peft_config")
    method.prepare(merged)  # as on any plain network


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_only_what_trains_has_gradients_and_changes(
    method: ThroughPeft, pictures: Pictures
) -> None:
    network = build("dit")
    names = method.prepare(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(pictures.predict(network), pictures.predict(build("dit")))
    pictures.predict(network).square().mean().backward()
    parameters = dict(network.named_parameters())
    assert [name for name, each in parameters.items() if each.requires_grad] == names
    assert {name for name, each in parameters.items() if each.grad is not None} == set(names)
    pictures.train(network, names, steps=2)
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert changed <= set(names)
    assert set(names) - changed <= {n for n in names if "embedding_A" in n or "lambda_d" in n}


@torch.no_grad()
def test_kin_merge_into_what_they_were(method: ThroughPeft, pictures: Pictures) -> None:
    network = trained(method, pictures)
    expected, plain = pictures.predict(network), build("dit")
    merged = method.merge(network)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert relative(pictures.predict(merged), expected) < 1e-5
    assert relative(pictures.predict(plain), expected) > 1e-3


@torch.enable_grad()
def trained(method: ThroughPeft, pictures: Pictures) -> nn.Module:
    network = build("dit")
    pictures.train(network, method.prepare(network), steps=3)
    return network


@torch.no_grad()
def test_what_is_saved_is_the_delta_and_makes_the_same_network(
    method: ThroughPeft, pictures: Pictures
) -> None:
    network = trained(method, pictures)
    saved = {name: value.clone() for name, value in method.saved(network).items()}
    count = sum(each.numel() for each in network.parameters() if each.requires_grad)
    beside = 8 * 48 * 2 if method is KIN["vera"] else 0  # its fixed projections
    assert count <= sum(value.numel() for value in saved.values()) <= count + beside
    again = build("dit")
    method.prepare(again)
    method.load(again, saved)
    assert torch.equal(pictures.predict(again), pictures.predict(network))


@torch.no_grad()
def test_peft_reads_what_is_saved(
    method: ThroughPeft, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(*args: Any) -> None:
        raise AssertionError("the hub was asked about the base")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lookup)
    network = trained(method, pictures)
    config = method.adapter_config(network, "some/base")
    assert config["base_model_name_or_path"] == "some/base"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: value.contiguous() for name, value in method.saved(network).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    theirs = build("dit")
    PeftModel.from_pretrained(theirs, tmp_path)
    assert torch.equal(pictures.predict(theirs), pictures.predict(network))


@torch.no_grad()
def test_files_are_those_that_peft_writes(
    method: ThroughPeft, pictures: Pictures, tmp_path: Path
) -> None:
    network = trained(method, pictures)
    peft_model(network).save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert method.adapter_config(network, None) == theirs
    tensors, saved = load_file(tmp_path / "adapter_model.safetensors"), method.saved(network)
    assert set(tensors) == set(saved)
    assert all(torch.equal(tensors[name], saved[name]) for name in tensors)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["attn.qkv"], modules_to_save=["y_embedder"]),
        LoraConfig(r=2, use_dora=True, target_modules=".*mlp.fc[12]"),
        peft.LoHaConfig(r=2, target_modules=["adaLN_modulation.1"]),
    ],
    ids=["lora", "dora", "loha"],
)
def test_a_folder_of_peft_is_read(config: Any, pictures: Pictures, tmp_path: Path) -> None:
    theirs = build("dit")
    model = get_peft_model(theirs, config).eval()
    names = [name for name, each in theirs.named_parameters() if each.requires_grad]
    pictures.train(theirs, names, steps=3)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    method, ours = PeftMethod.of_file({**values, "of_a_newer_peft": None}), build("dit")
    assert set(method.prepare(ours)) == set(names)
    method.load(ours, load_file(tmp_path / "adapter_model.safetensors"))
    with torch.no_grad():
        assert torch.equal(pictures.predict(ours), pictures.predict(theirs))
        assert relative(pictures.predict(ours), pictures.predict(build("dit"))) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "patterns", "bias", "oft"])
def test_merging_leaves_a_base_that_shares_its_weights(kind: str, pictures: Pictures) -> None:
    method, base = KIN[kind], build("dit")
    before = pictures.predict(base)
    parameters = {id(each): each for each in base.parameters()}
    network = copy.deepcopy(base, parameters)  # a memo: these are shared
    assert network.get_parameter("blocks.0.attn.qkv.weight") is base.get_parameter(
        "blocks.0.attn.qkv.weight"
    )
    for name in method.prepare(network):  # of their own, as fine-tuning makes them
        module = network.get_submodule(name.rpartition(".")[0])
        own = torch.randn_like(network.get_parameter(name)) / 3
        setattr(module, name.rpartition(".")[2], nn.Parameter(own))
    adapted = pictures.predict(network)
    method.merge(network)
    assert torch.equal(pictures.predict(base), before)
    assert relative(pictures.predict(network), adapted) < 1e-5
    assert relative(adapted, before) > 1e-2


@torch.no_grad()
def test_an_initialisation_that_takes_from_the_base_takes_from_a_copy(pictures: Pictures) -> None:
    base = build("dit")
    before = pictures.predict(base)
    network = copy.deepcopy(base, {id(each): each for each in base.parameters()})
    method = PeftMethod(
        config={"name": "lora", "init_lora_weights": "pissa", "target_modules": ["attn.qkv"]}
    )
    method.prepare(network)
    assert torch.equal(pictures.predict(base), before)
    assert relative(pictures.predict(network), before) < 1e-5


@torch.no_grad()
def test_copies_of_an_adapted_network_are_whole(pictures: Pictures) -> None:
    method = KIN["lora"]
    network = trained(method, pictures)
    expected = pictures.predict(network)
    other = copy.deepcopy(network)
    method.load(network, {name: 0 * value for name, value in method.saved(network).items()})
    assert torch.equal(pictures.predict(other), expected)
    assert relative(pictures.predict(method.merge(other)), expected) < 1e-5
    assert peft_model(network).base_model.model is network


@pytest.mark.parametrize("name", ["dit", "ddpmpp"])
@pytest.mark.parametrize("first", ["compute", "adapter"])
@torch.no_grad()
def test_adapters_act_in_networks_laid_out_for_speed(
    name: str, first: str, pictures: Pictures
) -> None:
    plan = dataclasses.replace(
        compute.choose(torch.device("cpu")), winograd=True, convolve_products=True
    )
    method, network, plain = LoRA(r=2, targets="attention"), build(name), build(name)
    method.prepare(plain)
    tensors = {n: torch.randn_like(value) / 3 for n, value in method.saved(plain).items()}
    method.load(plain, tensors)
    if first == "compute":
        plan.prepare(network)
    method.prepare(network)
    method.load(network, tensors)
    plan.prepare(network)
    expected = pictures.predict(plain)
    assert relative(pictures.predict(network), expected) < 1e-5
    assert relative(pictures.predict(method.merge(network)), expected) < 1e-5


def test_gradient_checkpointing_changes_nothing(pictures: Pictures) -> None:
    method, gradients = KIN["lora"], []
    for checkpointing in (False, True):
        network: Any = build("dit")
        if checkpointing:
            network.enable_gradient_checkpointing()
        torch.manual_seed(3)
        names = method.prepare(network)
        pictures.predict(network.train()).square().mean().backward()
        gradients.append([network.get_parameter(name).grad for name in names])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_new_layers_take_over_the_mode(pictures: Pictures) -> None:
    network, method = build("dit"), LoRA(r=2, dropout=0.5)
    method.prepare(network)
    assert not any(module.training for module in network.modules())
    network.train()
    assert any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in network.modules())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("lora", torch.float64), ("lora", torch.bfloat16), ("dora", torch.float64)],
)
@torch.no_grad()
def test_the_output_stays_bit_for_bit_in_other_types(
    kind: str, dtype: torch.dtype, pictures: Pictures
) -> None:
    network = build("dit").to(dtype)
    before = pictures.predict(network)
    KIN[kind].prepare(network)
    assert torch.equal(pictures.predict(network), before)


def test_options_come_from_plain_mappings() -> None:
    options = {"name": "lora", "targets": ["qkv", "mlp"], "rank_pattern": {"blocks.0.attn.qkv": 3}}
    assert METHODS.build_named(options) == LoRA(
        targets=["qkv", "mlp"], rank_pattern={"blocks.0.attn.qkv": 3}
    )
    config = {"peft_type": "LOHA", "r": 2, "target_modules": ["attn.qkv"]}
    method = METHODS.build_named({"name": "peft", "config": config})
    assert method == PeftMethod(config=config)
    network = build("dit")
    method.prepare(network)
    assert peft_model(network).peft_config["default"].r == 2
    assert METHODS.build("peft") == PeftMethod()  # to be listed


def test_targets_come_from_the_layout() -> None:
    network = build("dit")
    layers = {word: LoRA(targets=word).target_paths(network) for word in ("qkv", "mlp", "last")}
    assert layers["qkv"] == [f"blocks.{i}.attn.qkv" for i in range(3)]
    assert layers["mlp"] == [f"blocks.{i}.mlp.{fc}" for i in range(3) for fc in ("fc1", "fc2")]
    assert layers["last"] == ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    inside = LoRA(targets="all").target_paths(network)
    assert len(inside) == 3 * 5
    assert all(path.startswith("blocks.") for path in inside)
    assert LoRA(targets=["qkv", "attn.proj"]).target_paths(network) == LoRA(
        targets="attention"
    ).target_paths(network)


def test_a_path_that_ends_others_is_meant_alone() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.more = nn.Linear(2, 2), nn.ModuleDict({"proj": nn.Linear(2, 2)})

    network = Nested()
    get_peft_model(network, LoraConfig(target_modules=exact_targets(network, ["proj"])))
    assert [name for name, each in network.named_parameters() if each.requires_grad] == [
        "proj.lora_A.default.weight",
        "proj.lora_B.default.weight",
    ]


def test_trained_biases_are_pointed_out() -> None:
    network = build("dit")
    KIN["bias"].prepare(network)
    [note] = KIN["bias"].notes(network)
    assert "bias=lora_only trains the base's own biases" in note
    network = build("dit")
    KIN["lora"].prepare(network)
    assert KIN["lora"].notes(network) == []


REFUSED: list[tuple[Any, str]] = [
    (
        lambda: LoRA(targets="attn.qvk"),
        r"no layer of DiT is called 'attn.qvk'; did you mean 'attn.q",
    ),
    (
        lambda: LoRA(targets="proj"),
        r"'proj' means x_embedder.proj, too.*such as blocks.0.attn.proj",
    ),
    (lambda: LoRA(targets="convolution"), r"DiT has no such layers; its layers are called adaLN"),
    (lambda: LoRA(targets="embedding_table"), r"embedding_table is the class table.*class_table=f"),
    (lambda: LoRA(targets=[]), r"write one of qkv, attention"),
    (lambda: LoRA(targets={"a": 1}), r"write one of qkv, attention"),
    (lambda: LoRA(r=0), r"r must be at least 1, got 0"),
    (lambda: LoRA(alpha=0), r"alpha must be at least 1"),
    (lambda: LoRA(dropout=1.0), r"dropout must be at least 0 and below 1"),
    (lambda: LoRA(rank_pattern={"mlp.fc1": 2}), r"the pattern 'mlp.fc1' is no layer that LoRA"),
    (lambda: LoRA(rank_pattern={"qkv": 0}), r"rank_pattern.qkv must be at least 1"),
    (lambda: PeftMethod(), r"needs config.peft_type, such as LOHA.*known: ADALORA"),
    (lambda: PeftMethod(config={"peft_type": 3}), r"takes the name of a method of peft"),
    (
        lambda: PeftMethod(config={"name": "lohha"}),
        r"peft has no method 'lohha'; did you mean 'LOHA'",
    ),
    (
        lambda: PeftMethod(config={"name": "adalora"}),
        r"ADALORA does not fit here: the training loop",
    ),
    (lambda: PeftMethod(config={"name": "loha", "rr": 3}), r"refuses the options of loha.*'rr'"),
    (
        lambda: PeftMethod(config={"name": "loha", "target_modules": ["attn.qkw"]}),
        r"no layer of DiT is called 'attn.qkw'; did you mean 'attn.qkv'",
    ),
    (
        lambda: PeftMethod(config={"name": "loha", "target_modules": "block.*"}),
        r"peft refuses LOHA for DiT: Target module",
    ),
    (
        lambda: PeftMethod(config={"name": "loha", "target_modules": "nothing"}),
        r"'nothing' is an expression that no layer of DiT matches.*adaLN_modulation.1",
    ),
    (
        lambda: PeftMethod(config={"name": "loha", "target_modules": "qkv("}),
        r"peft refuses LOHA for DiT: missing \)",
    ),
    (
        lambda: PeftMethod(config={"name": "lora", "target_modules": ["embedding_table"]}),
        r"embedding_table is the class table",
    ),
    (lambda: PeftMethod(config={"name": "prompt_tuning"}, class_table=False), r"choose vpt"),
    (lambda: PeftMethod.of_file({"peft_type": "LORA", "newer": 3}), r"option newer=3.*newer peft"),
    (lambda: PeftMethod.of_file({"peft_type": "LORA", "megatron_config": {"a": 1}}), r"megatron"),
    (lambda: PeftMethod.of_file({}), r"takes the name of a method of peft"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refusals_are_one_sentence(make: Any, message: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message) as error:
        make().prepare(build("dit"))
    assert "\n" not in str(error.value)


def test_networks_are_refused_that_peft_would_spoil() -> None:
    network = build("dit")
    network.add_module("default", nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="peft would lose tensors"):
        LoRA().prepare(network)
    network = build("dit")
    LoRA().prepare(network)
    with pytest.raises(ConfigError, match="merge that one first"):
        LoRA().prepare(network)
    with pytest.raises(ConfigError, match="holds no adapter of peft"):
        LoRA().merge(build("dit"))


def test_what_peft_cannot_merge_stays(pictures: Pictures) -> None:
    method, network = (
        PeftMethod(config={"name": "lily", "r": 2, "target_modules": ["attn.proj"]}),
        build("dit"),
    )
    method.prepare(network)
    before = pictures.predict(network)
    with pytest.raises(ConfigError, match="peft cannot merge LILY"):
        method.merge(network)
    assert torch.equal(pictures.predict(network), before)


@torch.no_grad()
def test_an_adapter_of_another_kind_is_refused(pictures: Pictures) -> None:
    network, other = build("dit"), build("dit")
    LoRA(r=2).prepare(network)
    LoRA(r=3).prepare(other)
    with pytest.raises(CheckpointError, match=r"lora_A\.weight has the shape"):
        LoRA(r=2).load(network, LoRA(r=3).saved(other))
    tensors = LoRA(r=2).saved(network)
    gone = next(iter(tensors))
    with pytest.raises(CheckpointError, match=f"lacks {gone}"):
        LoRA(r=2).load(network, {k: v for k, v in tensors.items() if k != gone})
    with pytest.raises(CheckpointError, match="holds, beside what this method trains, more"):
        LoRA(r=2).load(network, {**tensors, "more": tensors[gone]})


def test_without_peft_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'genlab\[peft\]'"):
        LoRA().prepare(build("dit"))


def test_networks_with_statistics_save_them() -> None:
    network = BigGANGenerator(
        img_resolution=32, num_classes=3, channels=8, dim_z=8, attn_resolutions=[16]
    )
    remove_spectral_norm(network.eval())
    method: Method = LoRA(r=2, targets="convolution", class_table=False)
    method.prepare(network)
    statistics = {f"base_model.model.{name}" for name in layout_of(network).statistics}
    assert statistics
    saved = {name: value.clone() for name, value in method.saved(network).items()}
    assert statistics <= set(saved)
    moved = {n: v + 1 if n in statistics else v for n, v in saved.items()}
    method.load(network, moved)
    for name in layout_of(network).statistics:
        assert torch.equal(network.state_dict()[name], moved[f"base_model.model.{name}"])
