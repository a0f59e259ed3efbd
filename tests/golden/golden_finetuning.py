"""DiffFit, on GenLab's own network and on diffusers' class, both made from the case's folder."""

import copy
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from diffusers import DiTTransformer2DModel
from golden_cases import MismatchError, Run
from golden_diffusers import ANY_SCHEDULE, model_folder, our_labels
from safetensors.torch import load_file
from torch import Tensor, nn

import genlab
from genlab.checkpoints.readers.diffusers_dit import to_diffusers
from genlab.finetuning.layouts import LAYOUTS, layout_of
from genlab.finetuning.methods.base import Method
from genlab.finetuning.methods.bitfit import BitFit
from genlab.finetuning.methods.diffit import DiffFit
from genlab.finetuning.methods.scales import scale_name
from genlab.networks.dit import DiT_XL_2
from genlab.networks.layout import Branch, Layout
from genlab.registry import class_path

THEIR_SCALES = {"attention": "gamma_attn1", "mlp": "gamma_ff"}
"""Kind of a branch -> their name of its vector in a block."""
IN_ATTENTION = {"gamma_q": "to_q", "gamma_k": "to_k", "gamma_v": "to_v", "gamma_fnn": "to_out.0"}
"""Vectors that their processor has beside the paper's -> the layer whose output each multiplies."""


class WithProcessor(DiTTransformer2DModel):
    """Their network, of which the projections count as branches, too."""


@LAYOUTS.register(class_path(WithProcessor))
def with_projections(network: nn.Module) -> Layout:
    layout = LAYOUTS[class_path(DiTTransformer2DModel)](network)
    attentions = [branch for branch in layout.branches if branch.kind == "attention"]
    inside = [
        replace(branch, layer=branch.layer.replace("to_out.0", layer), gate=None)
        for branch in attentions
        for layer in IN_ATTENTION.values()
        if layer != "to_out.0"  # that one is multiplied by two of their vectors, a single one here
    ]
    return replace(layout, branches=(*layout.branches, *inside))


class Subject(NamedTuple):
    """A network, and how it is called with the inputs of a run."""

    network: nn.Module
    call: Callable[[Tensor, Tensor, Tensor], Tensor]

    def out(self, run: Run, x: Tensor) -> Tensor:
        return self.call(x, run.input("timestep"), run.input("class_labels"))


def subjects(run: Run, cls: Any = DiTTransformer2DModel) -> Iterator[Subject]:
    """The case's network as both classes have it; ours only where theirs is the plain one."""
    with tempfile.TemporaryDirectory() as name:
        folder = model_folder(run.case, name)
        theirs = cls.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()
        ours: Any = genlab.convert(folder, "diffusers", ANY_SCHEDULE)

    def call(x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        return theirs(x, timestep=timestep, class_labels=labels).sample

    def call_ours(x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        network = ours.network
        classes = network.embed_labels(our_labels(labels, network.label_dim))
        return network(x, timestep.float(), classes)

    yield Subject(theirs, call)
    if cls is DiTTransformer2DModel:
        yield Subject(ours.network, call_ours)


def weights(run: Run, role: str) -> dict[str, Tensor]:
    stem = run.case.meta["weights"][role]
    tensors = load_file(run.case.folder / f"{stem}.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


def their_scale(layout: Layout, branch: Branch) -> str:
    """Their name of a branch's vector."""
    return f"transformer_blocks.{layout.blocks.index(branch.block)}.{THEIR_SCALES[branch.kind]}"


def prepared(run: Run, network: nn.Module) -> Method:
    """The method that the run describes, which has prepared the network with the run's vectors."""
    params = run.params("gamma", "blocks", "processor")
    with_processor = params.get("processor", False)
    plain = layout_of(network)
    method = DiffFit(blocks="all" if with_processor else params.get("blocks", "all"))
    method.prepare(network)
    tensors = dict(method.saved(network))
    layout = layout_of(network)
    blocks = params.get("blocks", range(len(plain.blocks)))
    scales = weights(run, "gamma") if params["gamma"] else {}
    extra = weights(run, "processor") if with_processor else {}
    for branch in layout.branches:
        if (name := scale_name(branch)) not in tensors:
            continue
        number, layer = layout.blocks.index(branch.block), branch.layer.partition(".attn1.")[2]
        theirs = [] if layer.startswith(("to_q", "to_k", "to_v")) else [their_scale(layout, branch)]
        gamma = torch.ones_like(tensors[name])
        for factor in theirs if number in blocks else []:
            gamma = gamma * scales.get(factor, torch.ones(()))
        for vector, projection in IN_ATTENTION.items():
            if with_processor and layer == projection:
                gamma = gamma * extra[f"{branch.block}.attn1.processor.{vector}"]
        tensors[name] = gamma
    method.load(network, tensors)
    return method


@torch.no_grad()
def difffit_forward(run: Run) -> None:
    cls = WithProcessor if run.params("processor").get("processor") else DiTTransformer2DModel
    for subject in subjects(run, cls):
        plain = list(subject.network.state_dict())
        method = prepared(run, subject.network)
        run.expect_all({"out": subject.out(run, run.input("hidden_states"))})
        method.merge(subject.network)
        run.expect_all({"out": subject.out(run, run.input("hidden_states"))})
        if list(subject.network.state_dict()) != plain:
            raise MismatchError(f"{run.id}: the merged network has other weights than the plain")


def difffit_grad(run: Run) -> None:
    for subject in subjects(run):
        network = subject.network
        prepared(run, network)
        names = run.params("params")["params"]
        x = run.input("hidden_states").clone().requires_grad_()
        parameters = dict(network.named_parameters())
        trained = {name: each for name, each in parameters.items() if each.requires_grad}
        untrained = set(names) - set(in_their_names(network, trained))
        if untrained - beside(network):
            raise MismatchError(f"{run.id}: DiffFit does not train {sorted(untrained)}")
        network.requires_grad_(True)  # their rule trains more than the paper
        (subject.out(run, x) * run.input("cotangent")).sum().backward()
        gradients = {name: each.grad for name, each in parameters.items() if each.grad is not None}
        theirs = in_their_names(network, gradients)
        assert x.grad is not None
        run.expect_all({"grad_x": x.grad, **{f"grad[{name}]": theirs[name] for name in names}})


def difffit_trainable(run: Run) -> None:
    spec = run.params("names", "names_bitfit", "names_xl_not_bias")
    for subject in subjects(run):
        network = subject.network
        biases = trained_by(BitFit(class_table=False), network)
        _expect_names(run, "names_bitfit", biases, spec["names_bitfit"])
        ours = trained_by(DiffFit(blocks="all"), network)
        state = in_their_names(network, dict(network.named_parameters()))
        theirs = {**ours, **{name: state[name] for name in beside(network)}}
        _expect_names(run, "names", theirs, spec["names"])
        for name, shape in spec["names"].items():
            if list(theirs[name].shape) != shape:
                raise MismatchError(f"{run.id}: {name} is {list(theirs[name].shape)}, not {shape}")
        xl, xl_bitfit = _official_xl(run)
        _expect_names(run, "names_xl_not_bias", set(xl) - set(xl_bitfit), spec["names_xl_not_bias"])
        run.expect_all(
            {
                "count": _count(theirs),
                "count_bitfit": _count(biases),
                "count_xl": _count(xl),
                "count_xl_bitfit": _count(xl_bitfit),
            }
        )


def trained_by(method: Method, network: nn.Module) -> dict[str, Tensor]:
    """What a method trains, under their names."""
    names = method.prepare(network)
    parameters = dict(network.named_parameters())
    return in_their_names(network, {name: parameters[name] for name in names})


@torch.no_grad()
def in_their_names(network: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A value for each of some parameters, under the names of the re-implementation.

    Its normalisations have no parameters: values for ours are left out.
    """
    layout = layout_of(network)
    scales = {scale_name(branch): their_scale(layout, branch) for branch in layout.branches}
    renamed = {scales[name]: value for name, value in values.items() if name in scales}
    ours = {*scales, *layout.groups["norm"]}
    rest = {name: value for name, value in values.items() if name not in ours}
    if isinstance(network, DiTTransformer2DModel):
        return {**rest, **renamed}
    # The converter renames and splits weights, and so it does whatever stands in their place.
    holder: Any = copy.deepcopy(network)
    for name, parameter in holder.named_parameters():
        parameter.copy_(rest.get(name, torch.tensor(torch.nan)))
    converted = to_diffusers(holder)[1]
    return {**{name: each for name, each in converted.items() if not each.isnan().any()}, **renamed}


def beside(network: nn.Module) -> set[str]:
    """Their names of what their rule trains and the paper does not: weights below a 'norm1'."""
    pattern = r".*\.norm1\.(linear|emb\.timestep_embedder\.linear_\d)\.weight"
    names = in_their_names(network, dict(network.named_parameters()))
    return {name for name in names if re.fullmatch(pattern, name)}


def _official_xl(run: Run) -> list[Mapping[str, Tensor]]:
    """What their two rules train on an official DiT-XL/2: on its names they are our BitFit."""
    notes = " ".join(run.case.meta["notes"])
    found = re.search(r"DiT-XL/2 with num_classes=(\d+)", notes)
    if found is None:
        raise MismatchError(f"{run.id}: no note says the number of classes of counts_xl")
    trained: list[Mapping[str, Tensor]] = []
    for method in (BitFit(), BitFit(class_table=False)):
        with torch.device("meta"):
            network = DiT_XL_2(
                img_resolution=32, in_channels=4, out_channels=8, label_dim=int(found[1])
            )
        parameters = dict(network.named_parameters())
        trained.append({name: parameters[name] for name in method.prepare(network)})
    return trained


def _expect_names(run: Run, what: str, ours: Iterable[str], theirs: Iterable[str]) -> None:
    if different := set(ours) ^ set(theirs):
        raise MismatchError(f"{run.id}: {what} differ in {sorted(different)}")


def _count(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.tensor(sum(tensor.numel() for tensor in tensors.values()))


CHECKS: dict[str, Callable[[Run], None]] = {
    "difffit_forward": difffit_forward,
    "difffit_grad": difffit_grad,
    "difffit_trainable": difffit_trainable,
}
