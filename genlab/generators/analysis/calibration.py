"""Calibration of a discriminator: logistic regression on its logits of real and drawn images."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError
from genlab.generators.discriminator import Calibration, GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.samplers.gan.rejection import check_judge

FIRST_SEED = 2**40
"""Of the images that a calibration draws: far from the seeds that people take."""

BATCH_SIZE = 64
MAX_ITERATIONS = 100


def calibrate(
    discriminator: GanDiscriminator,
    generator: GanGenerator,
    images: UInt8[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"],
    sampler: Mapping[str, Any] | None = None,
) -> GanDiscriminator:
    """The same discriminator with a calibration by real images and as many drawn ones.

    Args:
        discriminator: calibrated or not.
        generator: draws one image of each real one's class, always the same ones.
        images: real images, best ones that the discriminator was not trained on.
        labels: their classes.
        sampler: changes to the generator's own sampler: truncation and statistics should be those
            of the images that will be judged. Rejection and Langevin dynamics are left out.

    Raises:
        ConfigError: model, discriminator and images do not fit each other, or there are fewer than
            two images.
    """
    check_judge(
        "a calibration",
        "discriminator",
        discriminator,
        generator.num_classes,
        generator.image_shape,
    )
    if tuple(images.shape[1:]) != tuple(generator.image_shape):
        raise ConfigError(
            f"the real images have the shape {tuple(images.shape[1:])} and the generator draws "
            f"{tuple(generator.image_shape)}; bring them to its size and channels"
        )
    if len(images) < 2:
        raise ConfigError(f"a calibration needs 2 real images or more, got {len(images)}")
    if not bool(((labels >= 0) & (labels < generator.num_classes)).all()):
        raise ConfigError(
            f"a calibration needs a class of 0 ... {generator.num_classes - 1} for each real image"
        )
    plain = generator.build_sampler({**(sampler or {}), "rejection": None, "langevin": None})
    seeds = range(FIRST_SEED, FIRST_SEED + len(images))
    batches = generator.stream(seeds, labels.tolist(), plain, BATCH_SIZE)
    discriminator.to(generator.device)
    discriminator.prepare()
    real, drawn = [], []
    with torch.no_grad():
        for start, batch in zip(range(0, len(images), BATCH_SIZE), batches, strict=True):
            part = slice(start, start + BATCH_SIZE)
            classes = labels[part].to(generator.device)
            pixels = from_uint8(images[part].to(generator.device))
            real.append(discriminator.raw_logits(pixels, classes).cpu())
            drawn.append(discriminator.raw_logits(batch.images, classes).cpu())
    return discriminator.calibrated(fit(torch.cat(real), torch.cat(drawn)))


def fit(real: Float[Tensor, " N"], drawn: Float[Tensor, " M"]) -> Calibration:
    """Fit ``log p(real) - log p(drawn) = slope * logit + intercept`` by logistic regression.

    Newton's method in float64. The targets are Platt's, a little inside of 0 and 1, so that there
    is a solution even where the logits tell all images apart.

    Args:
        real: logits of real images.
        drawn: logits of drawn images, best as many.

    Raises:
        ConfigError: a logit is not finite.

    Source: Platt 1999, Probabilistic outputs for support vector machines, Section 2.2.
    """
    logits = torch.cat([real, drawn]).to(torch.float64)
    if not bool(logits.isfinite().all()):
        raise ConfigError(
            "the discriminator's logits are not finite, so they cannot be calibrated; check its "
            "weights"
        )
    is_real = torch.cat([torch.ones(len(real)), torch.zeros(len(drawn))]).to(torch.float64)
    high, low = (len(real) + 1) / (len(real) + 2), 1 / (len(drawn) + 2)
    targets = low + (high - low) * is_real
    # In units of their own spread, so that the steps do not depend on the logits' scale.
    center, spread = logits.mean(), logits.std(correction=0)
    if spread == 0:
        slope, intercept = 0.0, _logit(targets.mean().item())
    else:
        inner, outer = _newton((logits - center) / spread, targets)
        slope = inner / spread.item()
        intercept = outer - slope * center.item()
    fitted = slope * logits + intercept
    losses = torch.nn.functional.binary_cross_entropy_with_logits(fitted, is_real)
    return Calibration(
        slope=slope,
        intercept=intercept,
        error_rate=((fitted > 0) != (is_real > 0)).to(torch.float64).mean().item(),
        log_loss=losses.item(),
        images=len(real),
    )


def _newton(x: Float64[Tensor, " N"], targets: Float64[Tensor, " N"]) -> tuple[float, float]:
    """Slope and intercept of the best logistic curve."""
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    weights = torch.zeros(2, dtype=torch.float64)

    def loss(weights: Tensor) -> float:
        value = torch.nn.functional.binary_cross_entropy_with_logits(design @ weights, targets)
        return float(value)

    for _ in range(MAX_ITERATIONS):
        p = (design @ weights).sigmoid()
        gradient = design.T @ (p - targets) / len(x)
        if gradient.abs().max() < 1e-12:
            break
        hessian = (design * (p * (1 - p))[:, None]).T @ design / len(x)
        move = torch.linalg.solve(hessian + 1e-12 * torch.eye(2, dtype=torch.float64), gradient)
        length, before = 1.0, loss(weights)
        while length > 1e-6 and loss(weights - length * move) > before:
            length /= 2  # the loss is convex: some part of the way leads down
        weights = weights - length * move
    return float(weights[0]), float(weights[1])


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
