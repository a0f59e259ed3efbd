"""LoRA through peft: adapters that peft wrote for the official DiT, on GenLab's."""

import copy
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from golden_cases import MismatchError, Run
from golden_diffusers import our_labels
from golden_dit import converted
from safetensors.torch import load_file
from torch import Tensor

from genlab.finetuning.methods.lora import LoRA
from genlab.finetuning.methods.peft_method import (
    PREFIX,
    PeftMethod,
    ThroughPeft,
    peft_model,
    switched_off,
)

OPTIONS = {
    "r": "r",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
"""peft's name of an option of LoRA -> GenLab's."""

OF_THE_RUN = {"auto_mapping", "base_model_name_or_path", "peft_version"}
"""What a file says of the base's class and of the library, not of the adapter."""


@dataclass
class Adapted:
    """GenLab's network with the adapter of a run."""

    method: ThroughPeft
    network: Any
    trained: list[str]

    def __call__(self, run: Run) -> Tensor:
        labels = our_labels(run.input("y"), self.network.label_dim)
        classes = self.network.embed_labels(labels)
        out: Tensor = self.network(run.input("x"), run.input("t").float(), classes)
        return out


def peft_lora(run: Run) -> None:
    params = run.params("config", "adapter", "adapter_config", "trainable_names")
    tensors = load_file(run.case.folder / f"{params['adapter']}.safetensors")
    for method in methods(params["config"], params["adapter_config"]):
        network: Any = copy.deepcopy(converted(run.case).network)
        plain = {name: type(module) for name, module in network.named_modules()}
        adapted = Adapted(method, network, method.prepare(network))
        method.load(network, tensors)
        _expect_names(run, adapted, params["trainable_names"])
        _expect_files(run, adapted, params["adapter_config"], tensors)
        _check(run, adapted)
        if {name: type(module) for name, module in network.named_modules()} != plain:
            raise MismatchError(f"{run.id}: something of peft is left in the merged network")


def methods(config: dict[str, Any], file: dict[str, Any]) -> Iterator[ThroughPeft]:
    """The ways to ask for one adapter: by peft's options, by its file, by GenLab's options."""
    yield PeftMethod(config={"peft_type": file["peft_type"], **config}, class_table=False)
    yield PeftMethod.of_file(file)
    kept = config.get("modules_to_save")
    table_only = kept in (None, ["y_embedder"])  # an embedder is nothing but its table
    if table_only and set(config) <= {*OPTIONS, "modules_to_save"}:
        options = {OPTIONS[key]: value for key, value in config.items() if key in OPTIONS}
        yield LoRA(**options, class_table=kept is not None)


def _check(run: Run, adapted: Adapted) -> None:
    network = adapted.network
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft's: with trained biases it is no base
        with switched_off(network):
            disabled = adapted(run)
    out = adapted(run)
    (out * run.input("cotangent")).sum().backward()
    parameters = {PREFIX + name: each for name, each in network.named_parameters()}
    gradients = {whole(name): p.grad for name, p in parameters.items() if p.grad is not None}
    if set(gradients) != {whole(PREFIX + name) for name in adapted.trained}:
        raise MismatchError(f"{run.id}: others than those that train have gradients")
    count = sum(parameters[PREFIX + name].numel() for name in adapted.trained)
    adapted.method.merge(network)
    with torch.no_grad():
        merged = adapted(run)
    run.expect_all(
        {
            "out": out.detach(),
            "out_merged": merged,
            "disabled": disabled,
            "trainable": torch.tensor(count),
            **{f"merged[{name}]": value for name, value in network.state_dict().items()},
            **{
                output: gradients[whole(output[len("grad[") : -1])]
                for output in run.spec["outputs"]
                if output.startswith("grad[")
            },
        }
    )


def whole(name: str) -> str:
    """A name that is the same for a table kept by itself and as all of its embedder."""
    return name.replace(".modules_to_save.default", "")


def _expect_names(run: Run, adapted: Adapted, names: list[str]) -> None:
    ours = [PREFIX + name for name in adapted.trained]
    if sorted(map(whole, ours)) != sorted(map(whole, names)):
        raise MismatchError(f"{run.id}: trains {ours}, not {names}")


def _expect_files(
    run: Run, adapted: Adapted, config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """GenLab writes what peft writes for this very network, and what the case's files hold."""
    ours = adapted.method.adapter_config(adapted.network, None)
    saved = adapted.method.saved(adapted.network)
    with TemporaryDirectory() as folder:
        peft_model(adapted.network).save_pretrained(folder)
        theirs = json.loads((Path(folder) / "adapter_config.json").read_text())
        written = load_file(Path(folder) / "adapter_model.safetensors")
    _expect_equal(run, "adapter_config.json", _comparable(ours, ()), _comparable(theirs, ()))
    _expect_equal(run, "adapter_model.safetensors", sorted(saved), sorted(written))
    for name, tensor in written.items():
        if not torch.equal(saved[name], tensor):
            raise MismatchError(f"{run.id}: {name} is not what peft writes")
    left_out = {*OF_THE_RUN, *(set(ours) ^ set(config))}
    if isinstance(adapted.method, LoRA):  # which targets whole paths
        left_out |= {"target_modules", "modules_to_save"}
    _expect_equal(
        run, "the case's file", _comparable(ours, left_out), _comparable(config, left_out)
    )
    _expect_equal(run, "the case's tensors", sorted(saved), sorted(tensors))
    for name, tensor in tensors.items():
        if not torch.equal(saved[name], tensor.float()):
            raise MismatchError(f"{run.id}: {name} is not what was loaded")


def _comparable(config: dict[str, Any], left_out: Any) -> dict[str, Any]:
    rest = {key: value for key, value in config.items() if key not in left_out}
    targets = rest.get("target_modules")
    return {**rest, "target_modules": sorted(targets) if isinstance(targets, list) else targets}


def _expect_equal(run: Run, what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise MismatchError(f"{run.id}: {what} is {ours}, not {theirs}")


CHECKS = {"peft_lora": peft_lora}
