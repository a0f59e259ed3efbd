"""BigGAN's networks against the official ones: outputs, features, gradients, moved buffers."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from golden_cases import NORM, Case, MismatchError, Run
from safetensors.torch import load_file
from torch import Tensor, nn

import genlab
from genlab.checkpoints.readers.biggan import read_discriminator
from genlab.diffusion.noise import NoiseStream
from genlab.generators.gan import GanGenerator
from genlab.networks.layers.gan_layers import SelfAttention
from genlab.networks.layers.spectral_norm import fold
from genlab.networks.layers.standing_statistics import begin_standing, normalizations
from genlab.samplers.gan.sampler import truncated_normal

WEIGHTS = "weights.safetensors"


class Checked:
    """The tensors of one case, each compared as the case says or read as an input."""

    def __init__(self, run: Run) -> None:
        self.run, self.case = run, run.case
        self.left = set(run.case.tensors)
        self.weights = load_file(run.case.folder / WEIGHTS)

    def __getitem__(self, name: str) -> Tensor:
        self.left.discard(name)
        return self.case.tensors[name]

    def has(self, name: str) -> bool:
        return name in self.case.tensors

    def expect(self, name: str, ours: Tensor) -> None:
        self.compare(name, ours, self[name])

    def compare(self, name: str, ours: Tensor, reference: Tensor) -> None:
        """By each number, as the case suggests, and by the norm of all together."""
        tolerance = self.case.meta["suggested_tolerance"]
        what = f"{self.run.id}: {name}"
        if ours.shape != reference.shape:
            raise MismatchError(f"{what} has shape {tuple(ours.shape)}")
        a, b = ours.detach().double(), reference.double()
        worst = float(((a - b).abs() - tolerance["rtol"] * b.abs()).max())
        if not worst <= tolerance["atol"]:  # a NaN fails, too
            raise MismatchError(f"{what}: off by {worst:.3g} more than rtol allows")
        # Not for a single number: the official gradient of a gamma, a sum that cancels, is itself
        # 1.4e-5 away from that of a run in float64.
        if b.numel() > 1 and not (a - b).norm() <= NORM * b.norm():
            raise MismatchError(f"{what}: the norm of the error is {float((a - b).norm()):.3g}")

    def expect_state(self, prefix: str, network: nn.Module) -> None:
        """What a call changed, under the official names; all the rest must be as it was."""
        state = network.state_dict()
        counts = [m.passes for m in normalizations(network) if m.passes is not None]
        for name, before in self.weights.items():
            if name.endswith("accumulation_counter"):
                [count] = set(counts) or {int(before)}
                ours = torch.tensor([float(count)])
            else:
                ours = state[name.replace(".bn.stored_", ".stored_")]
            changed = f"{prefix}.{name}"
            self.compare(changed, ours, self[changed] if self.has(changed) else before)

    def expect_end(self) -> None:
        if self.left:
            raise MismatchError(f"{self.run.id}: nobody looked at {', '.join(sorted(self.left))}")


@contextmanager
def outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What modules put out while this lasts, and under ``in.`` what came in."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name], seen[f"in.{name}"] = output.clone(), arguments[0].clone()

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def blocks_of(network: Any) -> dict[str, nn.Module]:
    return {f"block.{index}": block for index, block in enumerate(network.blocks)}


def read(case: Case) -> GanGenerator:
    """A generator as it comes from its file."""
    format_, config = "biggan-pytorch", case.meta.get("constructor")
    if config is None:
        format_, config = "biggan-deep-hf", case.meta["config"]
    generator = genlab.convert(case.folder / WEIGHTS, format=format_, config=config)
    assert isinstance(generator, GanGenerator)
    return generator


@torch.no_grad()
def generator(run: Run) -> None:
    checked = Checked(run)
    made = read(run.case)
    made.prepare()  # folded and laid out, as users sample
    network = made.network
    z, y = checked["z"], network.embed_labels(checked["y"])
    checked.expect("shared_y", y)
    with outputs(blocks_of(network)) as seen:
        checked.expect("out", network(z, y))
    for name, value in seen.items():
        if checked.has(name):
            checked.expect(name, value)
    if checked.has("free_cond"):
        checked.expect("out_free_cond", network(z, checked["free_cond"]))
    network = read(run.case).network.train()
    double = read(run.case).network.double().train()
    exact = double(z.double(), double.embed_labels(checked["y"]))
    _trained_output(checked, network(z, y), exact)
    checked.expect_state("after_train", network)
    if checked.has("standing.z"):
        network = read(run.case).network.train()
        begin_standing(network)
        for rows in zip(checked["standing.z"], checked["standing.y"], strict=True):
            network(*rows)
        network.eval()
        assert {m.passes for m in normalizations(network)} == {
            run.case.meta["num_standing_accumulations"]
        }
        checked.expect("out_standing", network(z, y))
        checked.expect_state("after_standing", network)
    checked.expect_end()


def _trained_output(checked: Checked, single: Tensor, double: Tensor) -> None:
    """A training call's output, ours in both precisions.

    Batch statistics multiply rounding: ours in float32 is as far from the exact output as the
    official one, how far depends on the number of threads, and the two may add up to more than is
    allowed. So the official output must be near ours in float64, and so must ours in float32.
    """
    checked.expect("out_train", double)
    checked.compare("out_train in float32", single, double)


def discriminator(run: Run) -> None:
    checked = Checked(run)

    def fresh() -> Any:
        return read_discriminator(run.case.folder / WEIGHTS, run.case.meta["constructor"])

    network = fold(fresh())
    x, y = checked["x"], checked["y"]
    with torch.no_grad(), outputs(blocks_of(network)) as seen:
        checked.expect("out", network(x, y))
    for name, value in seen.items():
        if checked.has(name):
            checked.expect(name, value)
    network = fresh().train()
    x = x.clone().requires_grad_()
    out = network(x, y)
    checked.expect("out_train", out)
    (out * checked["cotangent"]).sum().backward()
    assert x.grad is not None
    checked.expect("grad_x", x.grad)
    for name, parameter in network.named_parameters():
        if checked.has(f"grad.{name}"):
            assert parameter.grad is not None
            checked.expect(f"grad.{name}", parameter.grad)
    checked.expect_state("after_train", network)
    checked.expect_end()


class Uniforms(NoiseStream):
    """What NumPy's generator draws, in place of a noise stream."""

    def __init__(self, seed: int) -> None:
        super().__init__([])
        self.state = np.random.RandomState(seed)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        raise MismatchError("normal numbers are drawn where the official code draws uniform ones")

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(self.state.uniform(size=tuple(shape))).to(dtype)

    def fork(self, key: str) -> "Uniforms":
        raise MismatchError(f"a stream {key!r} is asked for, officially there is none")


def _official_noise(checked: Checked, name: str) -> None:
    """Official latents from their seed: the same distribution function, inverted."""
    what = run_description(checked.case, name)
    found = re.search(
        r"truncated_noise_sample\(batch_size=(\d+), dim_z=(\d+), truncation=([\d.]+), seed=(\d+)\)",
        what,
    )
    assert found is not None
    batch, dim_z, seed = int(found[1]), int(found[2]), int(found[4])
    z = truncated_normal(Uniforms(seed), (batch, dim_z), 2.0) * float(found[3])
    if not torch.equal(z, checked[name]):
        raise MismatchError(f"{checked.run.id}: {name} differs")


def run_description(case: Case, name: str) -> str:
    return str(case.meta["files"]["io.safetensors"][name]["what"])


@torch.no_grad()
def deep_hf(run: Run) -> None:
    checked = Checked(run)
    made = read(run.case)
    made.prepare()
    network: Any = made.network
    for name in ("z_unit", "truncated_noise"):
        _official_noise(checked, name)
    embedding = network.embed_labels(checked["class_vector"])

    def arguments(truncation: float) -> tuple[Tensor, Tensor, Tensor]:
        sampler = made.build_sampler({"truncation": truncation, "hf_compat": True})
        z = checked["z_unit"] * torch.tensor(truncation, dtype=torch.float32)
        return z, embedding, sampler.mixture(network.num_stats)

    first, *others = run.case.meta["calls"]
    attention = next(m for m in network.modules() if isinstance(m, SelfAttention))
    with outputs({"attention": attention}) as seen:
        z, _, _ = arguments(first["truncation"])
        out = network(*arguments(first["truncation"]))
    checked.expect("out.0", out)
    checked.expect("attn_in.0", seen["in.attention"])
    checked.expect("attn_out.0", seen["attention"])
    checked.expect("cond.0", torch.cat([z, embedding], 1))
    # The official quantisation, which is not ours: a factor of 256 and no rounding.
    pixels = ((out + 1) / 2 * 256).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    if (pixels.int() - checked["uint8.0"].int()).abs().max() > 1:
        raise MismatchError(f"{run.id}: uint8.0 differs")
    for call in others:
        checked.expect(f"out.{call['index']}", network(*arguments(call["truncation"])))
    network = read(run.case).network.train()
    checked.expect("out_train", network(*arguments(first["truncation"])))
    for layer in ("gen_z", "conv_to_rgb"):
        for vector in "uv":
            ours = getattr(getattr(network, layer), vector)
            checked.expect(f"after_train.generator.{layer}.weight_{vector}", ours)
    checked.expect_end()


CHECKS: dict[str, Callable[[Run], None]] = {
    "source BigGAN-PyTorch Discriminator": discriminator,
    "source BigGAN-PyTorch Generator": generator,
    "source pytorch-pretrained-BigGAN BigGAN": deep_hf,
}
