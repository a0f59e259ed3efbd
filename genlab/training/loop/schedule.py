"""The learning rate over a run."""

import math

from genlab.training.config import Decay, TrainConfig


def schedule_factor(config: TrainConfig, images: int) -> float:
    """The learning rate of the step after ``images`` images, as a factor of an optimizer's ``lr``.

    Args:
        config: of the run.
        images: seen before the step.

    Linear warm-up from 0 (EDM), then constant, a half cosine down to ``final``, EDM2's inverse
    square root ``1 / sqrt(max(t / t_ref, 1))``, or PixelCNN++'s exponential decay.
    """
    schedule = config.schedule
    warmup = schedule.warmup_kimg * 1000
    factor = min(images / warmup, 1.0) if warmup else 1.0
    if schedule.decay is Decay.cosine:
        end = 1000 * (schedule.decay_kimg or config.duration_kimg)
        progress = min(max((images - warmup) / max(end - warmup, 1), 0.0), 1.0)
        factor *= schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    elif schedule.decay is Decay.inv_sqrt:
        reference = 1000 * (schedule.decay_kimg or config.duration_kimg / 4)
        factor /= math.sqrt(max(images / reference, 1))
    elif schedule.decay is Decay.exponential:
        factor *= 0.5 ** (images / (1000 * (schedule.decay_kimg or config.duration_kimg / 4)))
    return factor
