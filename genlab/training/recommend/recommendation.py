"""Settings for training on one's own images, why each has its value, and what to expect.

`genlab.training.recommend.choosing` picks the network; here the rest follows from it.
docs/training.md tells the rules in words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genlab import config as configuration
from genlab.data.check.rules import FEW_IMAGES
from genlab.training.config import TrainConfig
from genlab.training.objectives.base import build_objective
from genlab.training.recommend.candidates import Candidate
from genlab.training.recommend.choosing import (
    MOST_PASSES,
    Choice,
    Plan,
    SetMetadata,
    Wish,
    choose_network,
    make_plan,
    minutes_for,
)
from genlab.training.recommend.speed import Speed, measure_speed

PREVIEWS, SNAPSHOTS, PATIENCE = 10, 5, 2
"""Previews and snapshots of a run; snapshots without an improvement that end it."""

AUGMENT_P, DROPOUT = 0.15, 0.13
"""EDM's for FFHQ and AFHQv2, and for CIFAR-10: arXiv:2206.00364, table 7."""

PIXELCNN_DROPOUT = 0.25
"""A rule of thumb: half of the paper's, for a network of a third of the width or less."""

GUIDANCE, PIXELCNN_GUIDANCE, STEPS = 2.0, 1.5, 10
"""What the bundled models are sampled with."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to train, and what to expect.

    Attributes:
        family: as the wish names it.
        settings: of `TrainConfig`, those that are not left at their defaults.
        reasons: dotted key of a setting -> why it has its value.
        parameters: numbers of the network that images are drawn with.
        image_shape: (C, H, W) of training.
        num_images: of the data set.
        kimg: thousands of images that the run sees.
        images_per_second: measured; None where nothing was.
        minutes: of the whole run, previews and all; None where nothing was measured.
        disk_bytes: of the run's folder at its end.
        expect: sentences.
    """

    family: str
    settings: Mapping[str, Any]
    reasons: Mapping[str, str]
    parameters: int
    image_shape: tuple[int, int, int]
    num_images: int
    kimg: float
    images_per_second: float | None
    minutes: float | None
    disk_bytes: int
    expect: Sequence[str]

    @property
    def passes(self) -> float:
        """How often the run sees each image."""
        return 1000 * self.kimg / self.num_images

    @property
    def config(self) -> TrainConfig:
        """The settings over the defaults."""
        return configuration.fill(TrainConfig, [("the recommendation", self.settings)])


def recommend(
    metadata: SetMetadata,
    wish: Wish,
    *,
    measured: bool = True,
    fast: bool = False,
    device: str | None = None,
) -> Recommendation:
    """Choose network, length and settings for a data set on this machine.

    Args:
        metadata: of the images.
        wish: of the user.
        measured: whether a few steps are trained to find out how fast this machine is; else the
            smallest network is taken, for as long as the bundled models were trained.
        fast: whether bfloat16 may be fast here; it is timed then.
        device: where the run is to train; None is the best there is.

    Raises:
        ConfigError: the size or the classes do not suit the family, or the minutes are too few.
        DataError: there are too few images.
    """
    plan = make_plan(metadata, wish)

    def measure(candidate: Candidate, precision: str) -> Speed:
        settings = _settings(plan, candidate, precision, candidate.good_kimg)
        config = configuration.fill(TrainConfig, [("the recommendation", settings)])
        return measure_speed(config, plan.data, device)

    choice = choose_network(plan, measure if measured else None, fast)
    return describe(plan, choice)


def describe(plan: Plan, choice: Choice) -> Recommendation:
    """Write out what was chosen."""
    kimg = choose_kimg(plan, choice)
    settings = _settings(plan, choice.candidate, choice.precision, kimg)
    config = configuration.fill(TrainConfig, [("the recommendation", settings)])
    objective = build_objective(config.objective)
    with torch.device("meta"):
        networks = objective.build(config.network, plan.data)
    speed = choice.speed
    return Recommendation(
        family=plan.wish.family,
        settings=settings,
        reasons=_reasons(plan, choice, kimg),
        parameters=_numbers(networks[objective.main]),
        image_shape=plan.image_shape,
        num_images=plan.metadata.num_images,
        kimg=kimg,
        images_per_second=None if speed is None else speed.images_per_second,
        minutes=None if speed is None else minutes_for(kimg, speed),
        disk_bytes=_disk_bytes(config, networks[objective.main], list(networks.values())),
        expect=_expect(plan, choice, kimg),
    )


def choose_kimg(plan: Plan, choice: Choice) -> float:
    """Thousands of images of the run, to three digits."""
    best_kimg = choice.candidate.good_kimg
    if choice.speed is not None:
        best_kimg = plan.kimg_in_time(choice.speed)
    kimg = min(best_kimg, plan.most_kimg)
    unit = 10.0 ** (math.floor(math.log10(kimg)) - 2)
    return float(f"{math.floor(kimg / unit) * unit:.6g}")


def _settings(plan: Plan, candidate: Candidate, precision: str, kimg: float) -> dict[str, Any]:
    family, has_classes = plan.family, plan.metadata.has_classes
    data: dict[str, Any] = {"path": plan.metadata.path}
    if plan.fit is not None:
        data |= {"image_size": plan.size, "fit": plan.fit}
    if not has_classes:
        data["labels"] = False
    judged = plan.few and plan.metadata.held_out is not None and family.score is not None
    return {
        "data": data,
        "network": _network(plan, candidate),
        "objective": _objective(plan, candidate),
        **({"validation": {"split": plan.metadata.held_out}} if judged else {}),
        **({"stopping": {"metric": family.score, "patience": PATIENCE}} if judged else {}),
        "optimizer": dict(candidate.optimizer),
        "schedule": {
            "warmup_kimg": _short(kimg * family.warmup_share),
            "decay": "cosine",
            **({"final": 0.1} if candidate.discriminator else {}),
        },
        "ema": {
            "halflife_kimg": _short(kimg * family.halflife_share),
            "rampup_ratio": 0.05,
            "sigma_rels": list(family.sigma_rels),
        },
        "output": {
            "preview_kimg": _short(kimg / PREVIEWS),
            "snapshot_kimg": _short(kimg / SNAPSHOTS),
            "state_minutes": 5,
        },
        "batch_size": candidate.batch_size,
        "duration_kimg": kimg,
        "mixed_precision": precision,
        "seed": 0,
        "license": "unknown",
        **_sampler(plan, candidate),
    }


def _network(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    network = dict(candidate.network)
    if network["name"] == "song-unet":
        network["dropout"] = DROPOUT if plan.few else 0.0
    if network["name"] == "pixelcnn++":
        network["dropout"] = PIXELCNN_DROPOUT if plan.few else 0.0
    return network


def _objective(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    if candidate.discriminator is not None:
        return {
            "name": "gan",
            "discriminator": dict(candidate.discriminator),
            "loss": {"name": "hinge"},
            "discriminator_steps": 2,
            "generator_ortho": 1.0e-4,
            **({"augment": ["color", "translation", "cutout"]} if plan.few else {}),
        }
    dropout = {"label_dropout": 0.1} if plan.metadata.has_classes else {}
    if candidate.network["name"] == "pixelcnn++":
        return {"name": "likelihood", **dropout}
    return {
        "name": "diffusion",
        "preconditioning": {"name": "edm"},
        "loss": {"name": "edm"},
        **dropout,
        **({"augment": {"p": AUGMENT_P}} if plan.few else {}),
    }


def _sampler(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    if candidate.discriminator is not None:
        return {}
    guided = plan.metadata.has_classes
    if candidate.network["name"] == "pixelcnn++":
        return {"sampler": {"guidance_scale": PIXELCNN_GUIDANCE}} if guided else {}
    return {
        "sampler": {
            "solver": {"name": "heun"},
            "schedule": {"name": "karras", "num_steps": STEPS},
            **({"guidance": [{"name": "cfg", "scale": GUIDANCE}]} if guided else {}),
        }
    }


def _reasons(plan: Plan, choice: Choice, kimg: float) -> dict[str, str]:
    """Dotted key -> why; what is not among the settings is passed over."""
    candidate, few = choice.candidate, plan.few
    height, width = plan.metadata.image_shape[1:]
    minutes = "" if choice.speed is None else _about(minutes_for(kimg, choice.speed) / PREVIEWS)
    recipe = "as this network was trained before"
    if "GenLab has no model" in candidate.note:
        recipe = "a usual value, not tried on this network"
    return {
        "data.fit": f"{width}x{height} is no size that the network can halve"
        if plan.fit in ("pad", "resize")
        else "the centre of the images, whose shorter side becomes this size",
        "data.labels": "no classes to tell apart",
        "network": candidate.note,
        "network.patch_size": "pixels are taken together, which spares work",
        "network.dropout": "holds the network back from learning few images by heart"
        if few
        else "enough images to do without",
        "objective.augment": "few images, so they are varied; samples do not show how",
        "objective.label_dropout": "teaches the null class, which guidance needs",
        "validation": "images that the run is judged by and not trained on",
        "stopping": f"{PATIENCE} snapshots in a row without a gain end the run",
        "optimizer.lr": recipe,
        "schedule.warmup_kimg": f"{plan.family.warmup_share:.1%} of the run",
        "schedule.decay": "towards 0 at the end: a run that is cut short is worth much less",
        "ema.halflife_kimg": f"{plan.family.halflife_share:.1%} of the run; samples are drawn "
        "with this average of the weights",
        "ema.sigma_rels": "'genlab train export --ema' makes other averages of these",
        "output.preview_kimg": f"{PREVIEWS} previews{minutes and f', one every {minutes}'}",
        "batch_size": recipe,
        "duration_kimg": _why_so_long(plan, choice),
        "mixed_precision": _why_precision(choice),
        "license": "of the images and the model, for its card",
        "sampler": "as the bundled models are sampled",
    }


def _why_so_long(plan: Plan, choice: Choice) -> str:
    if choice.speed is None:
        return "not measured: as long as the recipe that this follows"
    in_time = plan.kimg_in_time(choice.speed)
    rate = f"{choice.speed.images_per_second:,.0f} images/s measured here"
    if in_time <= plan.most_kimg:
        return f"what {plan.wish.minutes:g} minutes are enough for, {rate}"
    if plan.most_kimg <= plan.family.least_kimg:
        return f"the least that is worth while, on so few images, {rate}"
    return f"at most {MOST_PASSES} passes over few images, {rate}"


def _why_precision(choice: Choice) -> str:
    if choice.gain is None:
        return "float32"
    gain = f"bfloat16 trains {choice.gain:.1f} times as fast as float32 here"
    return gain if choice.precision == "bf16" else f"float32: {gain}"


def _expect(plan: Plan, choice: Choice, kimg: float) -> list[str]:
    """What to know before the run, the most important first."""
    data, family, name = plan.metadata, plan.family, plan.wish.family
    passes = 1000 * kimg / data.num_images
    lines = []
    if data.num_images < FEW_IMAGES:
        lines.append(
            f"{data.num_images:,} images are few: trained from scratch, a network learns them by "
            "heart and draws them again. Better adapt a trained one, see 'genlab finetune --help'."
        )
    if plan.few:
        text = (
            f"Each image is seen {passes:,.0f} times, so look for copies: samples that look like "
            "an image of the set are drawn from memory."
        )
        if family.score is not None and data.held_out is None:
            text += (
                " Images held out tell when to stop: validation.path=held-out.zip "
                f"stopping.metric={family.score}."
            )
        lines.append(text)
    lines.append(f"The network: {choice.candidate.note}; this run is of {kimg:g} kimg.")
    if plan.image_shape[0] == 3 and choice.candidate.least_images == 0:
        lines.append(
            "Colour, and photographs above all, ask for more than grey silhouettes: of this "
            "network expect colours and rough shapes."
        )
    if name == "biggan":
        lines.append("A GAN may collapse: watch the previews; the run ends by itself when it has.")
    if name == "pixelcnn":
        drawn = plan.size * plan.size
        lines.append(f"Images are drawn pixel by pixel, {drawn:,} steps for each batch of samples.")
    if choice.speed is not None and plan.kimg_in_time(choice.speed) > plan.most_kimg:
        lines.append(
            f"The {plan.wish.minutes:g} minutes would be enough for more, which would only teach "
            "the network the images by heart (a rule of thumb)."
        )
    if choice.limit:
        lines.append(f"No larger network: {choice.limit}.")
    return lines


def _disk_bytes(config: TrainConfig, main: nn.Module, networks: Sequence[nn.Module]) -> int:
    """States (weights, two moments, averages, in float32) and snapshots (in float16)."""
    averages = 1 + len(config.ema.sigma_rels)
    trained = sum(map(_numbers, networks))
    state = 4 * (3 * trained + averages * _numbers(main))
    return config.output.keep_states * state + SNAPSHOTS * averages * 2 * _numbers(main)


def _numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _short(value: float) -> float:
    """Three digits are enough, and short to read."""
    return float(f"{value:.3g}")


def _about(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 1.5 else f"{minutes:.0f} min"
