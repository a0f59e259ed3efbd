"""BigGAN's training against the official one: losses, regularisers, averages, two iterations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from golden_cases import Case, MismatchError, Run, compare
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import genlab
from genlab.checkpoints.readers.biggan import read_discriminator
from genlab.networks.gan_base import GeneratorNetwork
from genlab.training.config import EmaConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from genlab.training.loop.batches import DataMetadata, Share
from genlab.training.loop.ema import HalfLifeAverage
from genlab.training.loop.models import Models
from genlab.training.loop.updates import Updates
from genlab.training.objectives.base import Loss
from genlab.training.objectives.gan.losses import LOSSES
from genlab.training.objectives.gan.objective import DISCRIMINATOR, GENERATOR, GanObjective
from genlab.training.objectives.gan.regularizers import add_orthogonal_gradients

OFFICIAL_LOSSES = {"hinge": "hinge", "dcgan": "non-saturating"}
BATCH = 8
"""Images of a step of ours, where the official averages count steps: any number will do."""


def gan_training(run: Run) -> None:
    """What of BigGAN-PyTorch is no network: such a case names no class."""
    (iterations if "optimiser_steps" in run.case.meta["values"] else parts)(run)


def parts(run: Run) -> None:
    """``losses.py``, ``utils.ortho`` and ``utils.ema``."""
    values = run.case.meta["values"]
    ours: dict[str, Tensor] = {}
    for official, name in OFFICIAL_LOSSES.items():
        results, gradients = _losses(run.case.tensors, name)
        for key, value in results.items():
            expected = torch.tensor(values["losses"][official][key])
            compare(f"{run.id}: {official} {key}", value, expected)
        ours |= {f"{official}.{key}": value for key, value in gradients.items()}
    strength = values["ortho_strength"]
    ours |= _orthogonal(run, strength, "ortho", {"skip"}, unit_rows=False)
    # The official default variant fails where parameters are left out, so it was called without.
    ours |= _orthogonal(run, strength, "default_ortho", set(), unit_rows=True)
    ours |= _average(run, values)
    inputs = ("dis_", "ortho.w.", "ortho.grad_before.", "ema.source")
    _expect_all(run, ours, inputs)


def _losses(
    tensors: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    loss = LOSSES.build(name)
    fake, real = (tensors[key].clone().requires_grad_() for key in ("dis_fake", "dis_real"))
    of_real, of_fake = loss.of_reals(real).mean(), loss.of_fakes(fake).mean()
    of_generator = loss.of_generator(fake).mean()
    grad_fake, grad_real = torch.autograd.grad(of_real + of_fake, [fake, real])
    [gen_grad_fake] = torch.autograd.grad(of_generator, [fake])
    results = {
        "first_returned": of_real.detach(),
        "second_returned": of_fake.detach(),
        "generator": of_generator.detach(),
    }
    gradients = {
        "grad_dis_fake": grad_fake,
        "grad_dis_real": grad_real,
        "gen_grad_dis_fake": gen_grad_fake,
    }
    return results, gradients


def _orthogonal(
    run: Run, strength: float, prefix: str, skip: set[str], *, unit_rows: bool
) -> dict[str, Tensor]:
    """The gradients afterwards of those parameters that the official call had."""
    tensors = run.case.tensors
    start = f"{prefix}.grad_after."
    names = [key.removeprefix(start) for key in tensors if key.startswith(start)]
    parameters = {name: nn.Parameter(tensors[f"ortho.w.{name}"]) for name in names}
    for name, parameter in parameters.items():
        parameter.grad = tensors[f"ortho.grad_before.{name}"].clone()
    left_out = [parameters[name] for name in names if name in skip]
    network = nn.ParameterList(parameters.values())
    add_orthogonal_gradients(network, strength, left_out, unit_rows=unit_rows)
    return {f"{start}{name}": _gradient(parameter) for name, parameter in parameters.items()}


def _average(run: Run, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Update number i happens at the official iteration ``ema_itr_sequence[i]``.

    An official average that is not told the iteration, or is told 0, has no start; in a training
    run they are 1, 2, ..., so that case is an average of ours without one.
    """
    tensors = run.case.tensors
    start = _part(tensors, "ema.source0.")
    halflife = _halflife(values["ema_decay"], BATCH)
    delayed = HalfLifeAverage(start, halflife, None, values["ema_start_itr"] * BATCH)
    at_once = HalfLifeAverage(start, halflife, None)
    ours: dict[str, Tensor] = {}
    state = start
    for index, iteration in enumerate(values["ema_itr_sequence"]):
        average = delayed if iteration else at_once
        average.load_state_dict(state)
        source = _part(tensors, f"ema.source.{index}.")
        average.update(
            [source[name] for name in average.names], ((iteration or 1) - 1) * BATCH, BATCH
        )
        state = {name: value.clone() for name, value in average.state_dict().items()}
        ours |= {f"ema.target.{index}.{name}": value for name, value in state.items()}
    return ours


@dataclass(frozen=True, kw_only=True)
class Recorded(GanObjective):
    """Takes the official draws, and notes the losses and the gradients that the optimizers get.

    Every update of ours takes as many rounds as there are micro-batches, here those of the
    discriminator. Officially the generator's accumulations have a number of their own: they are
    dealt out to the rounds, one to each where the numbers are equal, as in a run of ours.

    Attributes:
        rounds: of an update.
        generator_rounds: accumulations of the generator's.
        draws: latents and classes that are left.
        losses: the last one of each player.
        pending: rounds of the present update so far.
        gradients: of each update, by the names of the case.
        steps: the first letter of each update's player.
    """

    rounds: int = 1
    generator_rounds: int = 1
    draws: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    losses: dict[str, Loss] = field(default_factory=dict)
    pending: list[Loss] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def compute_loss(self, phase: str, *arguments: Any) -> Loss:
        wanted = self.generator_rounds if phase == GENERATOR else self.rounds
        index = len(self.pending)
        total = torch.zeros((), requires_grad=True)  # of a round that has no accumulation
        for _ in range(index * wanted // self.rounds, (index + 1) * wanted // self.rounds):
            self.losses[phase] = super().compute_loss(phase, *arguments)
            total = total + self.losses[phase].total
        # The rounds are averaged, officially the accumulations.
        loss = Loss(total=total * (self.rounds / wanted), mean=total.detach())
        self.pending.append(loss)
        return loss

    def draw(
        self, network: GeneratorNetwork, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        z, labels = self.draws.pop(0)
        return z[:count], labels[:count]

    def adjust_gradients(self, phase: str, networks: Mapping[str, nn.Module]) -> None:
        super().adjust_gradients(phase, networks)
        letter = phase[0].upper()
        prefix = f"grad.{len(self.steps)}.{letter}."
        named = networks[phase].named_parameters()
        self.gradients.append({f"{prefix}{key}": _gradient(value).clone() for key, value in named})
        self.steps.append(letter)
        self.pending.clear()


def iterations(run: Run) -> None:
    """``train_fns.GAN_training_function``, some iterations of it."""
    meta, tensors = run.case.meta, run.case.tensors
    settings, values = meta["config"], meta["values"]
    _expect_settings(settings)
    ratio = settings["G_batch_size"] / settings["batch_size"]
    G, D = networks_of(run.case)
    objective = Recorded(
        discriminator=_described("biggan-discriminator", D),
        discriminator_steps=settings["num_D_steps"],
        generator_images=ratio,
        split=settings["split_D"],
        generator_ortho=settings["G_ortho"],
        discriminator_ortho=settings["D_ortho"],
        rounds=settings["num_D_accumulations"],
        generator_rounds=settings["num_G_accumulations"],
        draws=list(zip(tensors["z"], tensors["y"], strict=True)),
    )
    config = _train_config(meta, _described("biggan-generator", G))
    models, updates = _updates(config, objective, meta["generator"])
    models.plain("generator").load_state_dict(G.state_dict())
    models.plain("discriminator").load_state_dict(D.state_dict())
    average = models.averages[0]
    average.load_state_dict(models.main.state_dict())
    for index in range(settings["iterations"]):
        # A run's first step is the official iteration 1.
        updates.step(
            index, _micro_batches(settings, tensors[f"x.{index}"], tensors[f"labels.{index}"])
        )
        of_discriminator, of_generator = (
            objective.losses[DISCRIMINATOR],
            objective.losses[GENERATOR],
        )
        # Of the last accumulations; only the generator's is divided by their number.
        told = {
            "G_loss": of_generator.mean / settings["num_G_accumulations"],
            "D_loss_real": of_discriminator.parts["real"],
            "D_loss_fake": of_discriminator.parts["fake"],
        }
        for key, value in values["metrics_per_iteration"][index].items():
            compare(f"{run.id}: {key}", told[key], torch.tensor(value))
    if objective.steps != values["optimiser_steps"] or objective.draws:
        raise MismatchError(f"{run.id}: other updates or draws than officially")
    ours: dict[str, Tensor] = {}
    for gradients in objective.gradients:
        stored = {key: value for key, value in gradients.items() if key in tensors}
        ours |= settled_gradients(stored, tensors)
    for name, network in models.unwrapped.items():
        ours |= _named(f"after.{name[0].upper()}.", network.state_dict())
    ours |= _named("after.G_ema.", average.state_dict())
    _expect_all(run, ours, ("z", "y", "x.", "labels."))


def _micro_batches(
    settings: Mapping[str, Any], images: Tensor, labels: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The images of an iteration as our rounds take them.

    Officially every update has its accumulations one after the other; ours is the same round of
    every update in one micro-batch.
    """
    rounds = settings["num_D_accumulations"]
    chunks = list(
        zip(*(rows.split(settings["batch_size"]) for rows in (images, labels)), strict=True)
    )
    micro_batches = [zip(*chunks[index::rounds], strict=True) for index in range(rounds)]
    return [(torch.cat(x), torch.cat(y)) for x, y in micro_batches]


def networks_of(case: Case) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator as they come from their files."""
    official = load_file(case.folder / "weights.safetensors")
    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.safetensors" for name in "GD"}
        for name, path in files.items():
            save_file(_part(official, f"{name}."), path)
        settings = case.meta["generator"]
        generator = genlab.convert(files["G"], format="biggan-pytorch", config=settings)
        return generator.network, read_discriminator(files["D"], case.meta["discriminator"])


def _described(name: str, network: Any) -> dict[str, Any]:
    """What builds the same network in training."""
    own = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return {"name": name, **own}


def _train_config(meta: Mapping[str, Any], network: dict[str, Any]) -> TrainConfig:
    settings = meta["config"]
    G, D = meta["generator"], meta["discriminator"]
    batch = settings["batch_size"] * settings["num_D_steps"] * settings["num_D_accumulations"]
    return TrainConfig(
        network=network,
        optimizer=OptimizerConfig(
            lr=G["G_lr"],
            beta1=G["G_B1"],
            beta2=G["G_B2"],
            eps=G["adam_eps"],
            networks={
                "discriminator": {
                    "lr": D["D_lr"],
                    "beta1": D["D_B1"],
                    "beta2": D["D_B2"],
                    "eps": D["adam_eps"],
                }
            },
        ),
        schedule=ScheduleConfig(warmup_kimg=0),
        ema=EmaConfig(
            halflife_kimg=_halflife(settings["ema_decay"], batch) / 1000,
            rampup_ratio=None,
            start_kimg=settings["ema_start"] * batch / 1000,
            sigma_rels=[],
        ),
        batch_size=batch,
        gradient_accumulation=settings["num_D_accumulations"],
        duration_kimg=1,
    )


def _updates(
    config: TrainConfig, objective: GanObjective, generator: Mapping[str, Any]
) -> tuple[Models, Updates]:
    size, classes = generator["resolution"], generator["n_classes"]
    metadata = DataMetadata(
        num_images=1, image_shape=(3, size, size), num_classes=classes, class_names=None
    )
    AcceleratorState._reset_state()  # its settings outlive it, here those of other tests
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    models = Models(config, objective, metadata, accelerator)
    share = Share(config.batch_size, 1, 0, config.gradient_accumulation)
    return models, Updates(config, objective, models, accelerator, share)


def _expect_settings(settings: Mapping[str, Any]) -> None:
    """What this check does not look at must be as it takes it to be."""
    assumed = {"toggle_grads": True, "ema": True}
    for key, value in assumed.items():
        if settings[key] != value:
            raise MismatchError(f"{key} is {settings[key]}, this check knows {value}")


def _halflife(decay: float, batch: int) -> float:
    """In images, of an average that keeps ``decay`` in each step."""
    return float(batch * torch.tensor(0.5).double().log() / torch.tensor(decay).double().log())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def settled_gradients(
    gradients: dict[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients that are compared with the official ones, those that are 0 but for rounding put so.

    The bias of a convolution before batch normalisation has no influence: its gradient is the
    rounding of a sum of much larger numbers, here and officially.
    """
    largest = max(float(reference[key].abs().max()) for key in gradients)
    settled = {}
    for key, value in gradients.items():
        noise = 1e-6 * largest
        both = (value, reference[key])
        vanishes = all(float(numbers.abs().max()) < noise for numbers in both)
        settled[key] = reference[key] if vanishes else value
    return settled


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _expect_all(run: Run, ours: Mapping[str, Tensor], inputs: tuple[str, ...]) -> None:
    """Compare every output; each tensor of the case is an output or one of the inputs named."""
    unknown = set(_outputs(run.case.tensors, inputs)) ^ set(ours)
    if unknown:
        raise MismatchError(f"{run.id}: this check does not know {', '.join(sorted(unknown))}")
    for key, value in ours.items():
        compare(f"{run.id}: {key}", value, run.case.tensors[key])


def _outputs(tensors: Mapping[str, Tensor], inputs: tuple[str, ...]) -> Iterator[str]:
    return (key for key in tensors if not key.startswith(inputs))
