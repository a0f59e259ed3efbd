"""Adapters of peft, both ways; and folders that are damaged, or made to do harm."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_adapters import draw, write_base, write_small_adapter

import genlab
from genlab.diffusion.preconditioning import EDM
from genlab.errors import CheckpointError, ConfigError, GenLabError
from genlab.finetuning.adapters.adapter import read_adapter
from genlab.finetuning.adapters.facts import AdapterMetadata
from genlab.finetuning.adapters.folders import CONFIG, METADATA, TENSORS
from genlab.finetuning.adapters.loading import load_adapter
from genlab.finetuning.adapters.merging import merged
from genlab.finetuning.adapters.saving import write_adapter
from genlab.generators import DiffusionGenerator
from genlab.networks import DiT


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter and one of GenLab's own kind; tests copy what they spoil."""
    folder = tmp_path_factory.mktemp("adapters")
    for method in ("lora", "diffit", "vpt"):
        write_small_adapter(folder / method, base, method)
    return folder


def values_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, lora_alpha=6, target_modules=["attn.qkv"]),
        LoraConfig(
            r=2, use_dora=True, target_modules=".*mlp.fc[12]", modules_to_save=["y_embedder"]
        ),
        LoraConfig(r=2, init_lora_weights="pissa", target_modules=["attn.qkv"]),
        peft.LoHaConfig(r=2, target_modules=["adaLN_modulation.1"]),
    ],
    ids=["lora", "dora", "pissa", "loha"],
)
@torch.no_grad()
def test_an_adapter_that_peft_wrote(config: Any, base: Path, tmp_path: Path) -> None:
    theirs = genlab.load(base)
    model = get_peft_model(theirs.network, config).eval()
    for name, parameter in theirs.network.named_parameters():
        if "lora_" in name or "hada_" in name or "modules_to_save" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ConfigError, match="does not name its base; name it: 'genlab sample MODEL"):
        genlab.load(tmp_path)
    ours = load_adapter(tmp_path, base=str(base))
    assert torch.equal(draw(ours), draw(theirs))
    assert ours.class_names == theirs.class_names
    assert (draw(merged(ours)) - draw(ours)).abs().max() < 1e-3
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert torch.equal(draw(genlab.load(tmp_path)), draw(theirs))


@pytest.mark.parametrize("method", ["lora", "peft"])
@torch.no_grad()
def test_peft_reads_what_genlab_wrote(method: str, base: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")  # as many classes: peft makes no others
    write_small_adapter(tmp_path, base, method, names=names)
    theirs = genlab.load(base)
    PeftModel.from_pretrained(theirs.network, str(tmp_path)).eval()
    assert torch.equal(draw(genlab.load(tmp_path)), draw(theirs))


@torch.no_grad()
def test_adapters_of_the_official_dit(shared: Path, tmp_path: Path) -> None:
    """peft's own files for the official network, with the names that GenLab's has."""
    case = shared / "golden-samplers" / "peft_lora_dit"
    runs = {run["name"]: run for run in values_of(case / "meta.json")["runs"]}
    network = DiT(
        img_resolution=8, in_channels=4, out_channels=8, label_dim=10, patch_size=2,
        hidden_size=48, depth=2, num_heads=3,
    )  # fmt: skip
    base = DiffusionGenerator(network.eval(), EDM(), has_null_class=True)
    for name, run in runs.items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(case / f"adapter_{name}.safetensors", folder / TENSORS)
        (folder / CONFIG).write_text(json.dumps(run["params"]["adapter_config"]))
        adapter = read_adapter(folder)
        adapted: Any = load_adapter(adapter, base)
        given = load_file(folder / TENSORS)
        held = adapter.method.saved(adapted.network)
        assert held.keys() == given.keys()
        assert all(torch.equal(held[key], given[key].float()) for key in given)


def spoiled(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    values = values_of(folder / name)
    changed = change(values)
    (folder / name).write_text(json.dumps(values if changed is None else changed))


def put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: {**values, key: value}


HOSTILE: list[tuple[str, str, Callable[[dict[str, Any]], Any], str]] = [
    ("diffit", CONFIG, put("code", "os.system"), r"holds 'code', which this version"),
    ("diffit", CONFIG, lambda v: v.pop("method") and None, r"lacks method"),
    ("diffit", CONFIG, put("num_classes", "3"), r"num_classes in .* must be a whole number"),
    ("diffit", CONFIG, put("num_classes", True), r"must be a whole number, got True"),
    ("diffit", CONFIG, put("num_classes", 10**9), r"must lie between 0 and 1,000,000"),
    ("diffit", CONFIG, put("num_classes", 2), r"has 3 class_names and num_classes 2"),
    ("diffit", CONFIG, put("class_names", ["a", "b", ""]), r"class_names in .* must be names"),
    ("diffit", CONFIG, put("base_sha256", "00"), r"must be 64 hexadecimal digits"),
    ("diffit", CONFIG, put("resolution", 1 << 15), r"more than 16 times as large"),
    (
        "diffit",
        CONFIG,
        put("classes", [{"name": "a"}] * 3),
        r"classes\[0\] in .* must be an obj",
    ),
    ("diffit", CONFIG, put("method", {"name": "diffitt"}), r"did you mean 'diffit'"),
    ("diffit", CONFIG, put("method", {"name": "diffit", "x": 1}), r"no setting 'x'"),
    ("diffit", CONFIG, put("method", {"name": "bitfit"}), r"holds, beside what this method trains"),
    ("diffit", CONFIG, put("sampler", {"nothing": 1}), r"no setting 'nothing'"),
    ("diffit", CONFIG, put("sampler", {"solver": {"name": "${oc.env:HOME}"}}), r"interpolated"),
    ("vpt", CONFIG, put("method", {"name": "vpt", "tokens": 10**12}), r"has the shape \(3, 16\)"),
    ("lora", METADATA, put("method", {"name": "lora", "r": 10**9}), r"has the shape \(2, 16\)"),
    (
        "lora",
        METADATA,
        put("method", {"name": "diffit"}),
        r"the adapter lacks",
    ),
    ("lora", CONFIG, put("lora_alpha", 3), r"two files differ: lora_alpha is 3 for peft"),
    (
        "lora",
        METADATA,
        put("method", {"name": "lora", "rank_pattern": {"(a+)+$": 2}}),
        r"could take forever to compare",
    ),
    (
        "lora",
        METADATA,
        put("method", {"name": "peft", "config": {"name": "lora", "megatron_config": {"a": 1}}}),
        r"lets peft import a module",
    ),
]


@pytest.mark.parametrize(("method", "file", "change", "message"), HOSTILE)
def test_what_a_file_claims_is_refused_in_one_sentence(
    method: str,
    file: str,
    change: Callable[[dict[str, Any]], Any],
    message: str,
    adapters: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(adapters / method, tmp_path / "spoiled")
    spoiled(tmp_path / "spoiled", file, change)
    started = time.process_time()
    with pytest.raises(GenLabError, match=message) as error:
        genlab.load(tmp_path / "spoiled")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000
    assert time.process_time() - started < 5


PEFTS: list[tuple[Mapping[str, Any], str]] = [
    ({"target_modules": "(.+)+x"}, r"could take forever"),
    ({"target_modules": ".*.*.*.*.*.*x"}, r"could take forever"),
    ({"target_modules": ["attn.qkv"] * 5000}, r"has 5,000 entries"),
    ({"init_lora_weights": "corda"}, r"began by 'corda'"),
    ({"init_lora_weights": "pissa_niter_999999"}, r"began by 'pissa_niter_999999'"),
    ({"megatron_config": {"a": 1}}, r"lets peft import a module"),
    ({"peft_type": "NOTHING"}, r"peft has no method 'NOTHING'"),
    ({"peft_type": 3}, r"takes the name of a method of peft"),
    ({"r": 10**9}, r"has the shape \(2, 16\), the model's"),
    ({"of_the_future": 1}, r"option of_the_future=1"),
]


@pytest.mark.parametrize(("options", "message"), PEFTS)
def test_what_a_file_of_peft_claims_is_refused(
    options: Mapping[str, Any], message: str, base: Path, adapters: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "lora", tmp_path / "spoiled")
    (tmp_path / "spoiled" / METADATA).unlink()
    spoiled(tmp_path / "spoiled", CONFIG, lambda values: {**values, **options})
    with pytest.raises(GenLabError, match=message) as error:
        load_adapter(tmp_path / "spoiled", base=str(base))
    assert "\n" not in str(error.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path)


def one_less(path: Path) -> None:
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[1:]), path)


def whole_numbers(path: Path) -> None:
    save_file({name: value.to(torch.int64) for name, value in load_file(path).items()}, path)


def odd_name(path: Path) -> None:
    save_file({"a\x1b[2J": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"is cut short or damaged"),
        (not_finite, r"holds numbers that are not finite"),
        (one_less, r"the adapter lacks"),
        (whole_numbers, r"is of the type torch.int64"),
        (odd_name, r"names a tensor 'a\\x1b\[2J'"),
        (Path.unlink, r"lacks its numbers"),
        (lambda path: path.write_bytes(b""), r"is cut short or damaged"),
        (lambda path: path.with_name(CONFIG).write_text("[" * 9999), r"cannot be read"),
    ],
)
@pytest.mark.parametrize("method", ["lora", "diffit"])
def test_damaged_numbers_are_refused_in_one_sentence(
    spoil: Callable[[Path], Any], message: str, method: str, adapters: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters / method, tmp_path / "spoiled")
    spoil(tmp_path / "spoiled" / TENSORS)
    with pytest.raises(CheckpointError, match=message) as error:
        genlab.load(tmp_path / "spoiled")
    assert "\n" not in str(error.value)


def test_text_from_a_file_is_printable(adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters / "diffit", tmp_path / "spoiled")
    names = ["cat\x1b[2J", "frog", "ship"]
    spoiled(tmp_path / "spoiled", CONFIG, put("class_names", names))
    assert genlab.load(tmp_path / "spoiled").class_names == ("cat\\x1b[2J", "frog", "ship")


def test_half_precision_is_read(adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters / "diffit", tmp_path / "half")
    path = tmp_path / "half" / TENSORS
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    half, whole = genlab.load(tmp_path / "half"), genlab.load(adapters / "diffit")
    assert half.dtype == torch.float32
    assert 0 < (draw(half) - draw(whole)).abs().max() < 0.1


def test_facts_are_written_as_they_are_read(base: Path, adapters: Path, tmp_path: Path) -> None:
    read = read_adapter(adapters / "diffit")
    assert isinstance(read.metadata, AdapterMetadata)
    assert read.metadata.to_json() == values_of(adapters / "diffit" / CONFIG)
    assert read.metadata.base == str(base)
    network = load_adapter(read).network
    write_adapter(tmp_path / "again", read.method, network, read.metadata)
    for name in (CONFIG, TENSORS):
        written = (tmp_path / "again" / name).read_bytes()
        assert written == (adapters / "diffit" / name).read_bytes()
