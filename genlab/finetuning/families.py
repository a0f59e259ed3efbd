"""The objective that fine-tunes a base, by its family, with defaults that fit the base."""

from collections.abc import Callable, Mapping
from typing import Any

from genlab import schema
from genlab.data.augment.nonleaky import NUM_LABELS
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow
from genlab.diffusion.preconditioning import EDM, IDDPM, VE, VP, Preconditioning
from genlab.errors import ConfigError
from genlab.finetuning.gan.objective import GanFinetuning
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator
from genlab.training.objectives.base import OBJECTIVES, Objective

LABEL_DROPOUT = 0.1
"""Of bases with a null class, which the run must go on training: else guidance would fade."""

Builder = Callable[[Generator, Mapping[str, Any]], Objective]


def family_objective(base: Generator, options: Mapping[str, Any]) -> Objective:
    """The objective that trains a base.

    Args:
        base: the model, with the classes of the data.
        options: of its family's objective, over what follows from the base.

    Raises:
        ConfigError: an option is unknown, or does not fit the base; or no base of this family can
            be fine-tuned.
    """
    if base.family not in FAMILIES:
        raise ConfigError(
            f"a generator of the family {base.family!r} cannot be fine-tuned on images; known "
            f"families: {', '.join(FAMILIES)}"
        )
    return FAMILIES[base.family](base, options)


def default_loss(preconditioning: Preconditioning) -> dict[str, Any]:
    """The loss that a preconditioning was made for, as `genlab.diffusion.losses.LOSSES` takes it.

    A learned variance goes on being trained by the variational bound: ``L_simple + 0.001 L_vlb``,
    where the bound sums over T steps and one is drawn, is the kind ``rescaled_mse``.

    Raises:
        ConfigError: there is none for it.
    """
    match preconditioning:
        case EDM(sigma_data=sigma_data):
            return {"name": "edm", "sigma_data": sigma_data}
        case VP(beta_d=beta_d, beta_min=beta_min, epsilon_t=epsilon_t):
            return {"name": "vp", "beta_d": beta_d, "beta_min": beta_min, "epsilon_t": epsilon_t}
        case VE(sigma_min=sigma_min, sigma_max=sigma_max):
            return {"name": "ve", "sigma_min": sigma_min, "sigma_max": sigma_max}
        case Flow(path=path, prediction=prediction):
            return {"name": "flow", "path": path, "prediction": prediction}
        case Discrete() | IDDPM():
            learned = preconditioning.variance.startswith("learned")
            return {"name": "ddpm", "kind": "rescaled_mse" if learned else "mse"}
    raise ConfigError(
        f"no loss is known to fit the preconditioning {preconditioning.name!r}; name one with "
        "objective.loss.name=..."
    )


def _diffusion(base: Generator, options: Mapping[str, Any]) -> Objective:
    assert isinstance(base, DiffusionGenerator)
    if "preconditioning" in options:
        raise ConfigError(
            "objective.preconditioning has no effect in fine-tuning: it is the base's; leave it out"
        )
    config: Any = base.network.config
    if options.get("augment") is not None and config.get("augment_dim", 0) != NUM_LABELS:
        raise ConfigError(
            "objective.augment needs a base that is told how its images were moved and coloured, "
            "which this one is not: it would learn to draw such images; leave it out"
        )
    return _built(
        "diffusion",
        {
            "preconditioning": base.preconditioning.to_config(),
            "loss": options.get("loss") or default_loss(base.preconditioning),
            "label_dropout": _label_dropout(base, options),
        },
        options,
    )


def _likelihood(base: Generator, options: Mapping[str, Any]) -> Objective:
    return _built("likelihood", {"label_dropout": _label_dropout(base, options)}, options)


def _gan(base: Generator, options: Mapping[str, Any]) -> Objective:
    return schema.make(GanFinetuning, options, "the objective gan")


def _label_dropout(base: Any, options: Mapping[str, Any]) -> float:
    """The option, or the rate that keeps the base's null class."""
    share: float = options.get("label_dropout", LABEL_DROPOUT if base.has_null_class else 0.0)
    if share and base.num_classes and not getattr(base.network, "null_class", True):
        raise ConfigError(
            f"objective.label_dropout={share} needs a null class, for which the base has no row; "
            "leave it out"
        )
    return share


def _built(name: str, follows: Mapping[str, Any], options: Mapping[str, Any]) -> Objective:
    objective: Objective = OBJECTIVES.build(name, **{**options, **follows})
    return objective


FAMILIES: dict[str, Builder] = {
    "autoregressive": _likelihood,
    "diffusion": _diffusion,
    "gan": _gan,
}
"""Family of the base -> what makes its objective; its options are those of the objective."""
