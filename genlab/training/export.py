"""Export a run: choose an average of the weights, write the model's folder and card."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.sources.latents import AUTOENCODER
from genlab.errors import ConfigError, TrainingError
from genlab.training.card import model_card
from genlab.training.loop.early_stopping import best_images
from genlab.training.loop.ema import averaged_tensors, sigma_rel_of
from genlab.training.loop.snapshots import Snapshot, list_snapshots
from genlab.training.loop.state import load_state, states
from genlab.training.objectives.base import Product
from genlab.training.objectives.latents import with_autoencoder
from genlab.training.posthoc import CONSTRAINED, check_rule, read_snapshot, reconstruct
from genlab.training.run import Run

HALFLIFE = "halflife"
RAW = "none"


@dataclass(frozen=True)
class Choice:
    """A choice among the weights of a run.

    Attributes:
        average: ``halflife``, ``none`` (the weights as they are, not averaged), or a width
            ``sigma_rel`` of a power-function average.
        images: training time at which they are wanted; None is the latest, or where a score may
            stop the run the time at which that was best.
        posthoc: by which of `genlab.training.posthoc.RULES` a width is made of stored averages;
            None is ``constrained``.
    """

    average: str | float = HALFLIFE
    images: int | None = None
    posthoc: str | None = None

    def __post_init__(self) -> None:
        if self.posthoc is None:
            return
        check_rule(self.posthoc)
        if not isinstance(self.average, float):
            raise ConfigError(
                "a post-hoc rule is for power-function averages, such as sigma_rel=0.08; leave it "
                f"out with {self.average}"
            )

    @classmethod
    def parse(cls, text: str, images: int | None = None, posthoc: str | None = None) -> "Choice":
        """Read ``halflife``, ``none``, ``0.08`` or ``sigma_rel=0.08``."""
        if text in (HALFLIFE, RAW):
            return cls(text, images, posthoc)
        key, equals, value = text.rpartition("=")
        try:
            if equals and key not in ("sigma_rel", "gamma"):
                raise ValueError(key)
            number = float(value)
        except ValueError as error:
            raise ConfigError(
                f"--ema {text!r}: write halflife, none, or a width such as sigma_rel=0.08"
            ) from error
        return cls(sigma_rel_of(number) if key == "gamma" else number, images, posthoc)

    def __str__(self) -> str:
        if isinstance(self.average, float):
            rule = f" by the rule {self.posthoc}" if self.posthoc else ""
            return f"power-function average, sigma_rel {self.average:g}{rule}"
        return "average by half-life" if self.average == HALFLIFE else "last weights, not averaged"


@dataclass(frozen=True)
class Chosen:
    """Weights of a run.

    Attributes:
        weights: parameter name -> value.
        images: training time they are from.
        error: of the profile, for reconstructed averages; 0 for stored ones.
    """

    weights: Mapping[str, Tensor]
    images: int
    error: float = 0.0


def choose_weights(run: Run, choice: Choice) -> Chosen:
    """Find or reconstruct the chosen weights.

    Raises:
        TrainingError: the run has not stored them.
    """
    snapshots = list_snapshots(run.snapshots)
    if choice.images is None and choice.average != RAW:
        choice = replace(choice, images=_best_images(run, snapshots))
    if isinstance(choice.average, float):
        rule = choice.posthoc or CONSTRAINED
        weights, error = reconstruct(snapshots, choice.average, choice.images, rule)
        end = choice.images or max(s.images for s in snapshots if s.sigma_rel is not None)
        return Chosen(weights, end, error)
    if choice.images is None or choice.average == RAW:
        return _from_state(run, choice, snapshots)
    for snapshot in snapshots:
        if snapshot.average == HALFLIFE and snapshot.images == choice.images:
            return Chosen(read_snapshot(snapshot), snapshot.images)
    available = sorted({s.images for s in snapshots if s.average == HALFLIFE})
    raise TrainingError(
        f"{run.folder} holds no average by half-life after {choice.images} images; there are "
        "some after "
        f"{', '.join(map(str, available)) or 'none'}"
    )


def _best_images(run: Run, snapshots: list[Snapshot]) -> int | None:
    """When the score that may stop the run was best; None where none may, or nothing is kept."""
    saved = states(run.states)
    if not saved or run.read_config().stopping.metric is None:
        return None
    images = best_images(load_state(saved[-1]).record.get("stopping", {}))
    return images if images in {snapshot.images for snapshot in snapshots} else None


def _from_state(run: Run, choice: Choice, snapshots: list[Snapshot]) -> Chosen:
    """The latest weights: the last state's, in full precision, unless a snapshot is newer."""
    saved = states(run.states)
    state = load_state(saved[-1]) if saved else None
    if choice.average == RAW:
        if state is None or choice.images not in (None, state.progress.images):
            raise TrainingError(
                f"{run.folder} holds unaveraged weights of its last state only; leave --images "
                "out or take an average"
            )
        main = run.build_objective(run.read_config()).main
        return Chosen(state.networks[main], state.progress.images)
    newest = max(
        (s for s in snapshots if s.average == HALFLIFE), key=lambda s: s.images, default=None
    )
    if state is not None and (newest is None or newest.images <= state.progress.images):
        return Chosen(state.averages[HALFLIFE], state.progress.images)
    if newest is None:
        raise TrainingError(
            f"the run in {run.folder} has saved no weights yet; wait for its first state"
        )
    return Chosen(read_snapshot(newest), newest.images)


def make_product(
    run: Run, choice: Choice, extra_rows: Mapping[str, Any] | None = None
) -> tuple[Product, Chosen]:
    """What a run has trained (a generator, a classifier), in float32 on the CPU, with its card.

    Args:
        run: finished or not.
        choice: which weights.
        extra_rows: more rows for the model card's table, for instance a score.
    """
    config, data = run.read_config(), run.read_data()
    objective = run.build_objective(config)
    network = objective.build(config.network, data)[objective.main]
    chosen = choose_weights(run, choice)
    with torch.no_grad():
        tensors = averaged_tensors(network)
        missing = tensors.keys() - chosen.weights.keys()
        if missing:
            raise TrainingError(
                f"the weights stored in {run.folder} lack {sorted(missing)[0]}: they are of "
                "another network than its config.yaml"
            )
        for name, tensor in tensors.items():
            tensor.copy_(chosen.weights[name])
    names = data.class_names if config.class_names is None else tuple(config.class_names)
    card = model_card(run, config, data, objective, choice, chosen.images, extra_rows or {})
    network.eval()
    product = objective.product(objective.finish(network), names, config.sampler, card)
    if data.autoencoder is not None and not objective.starts_trained:
        product = with_autoencoder(product, run.folder / AUTOENCODER)
    return product, chosen


def export(
    run: Run,
    folder: Path,
    choice: Choice,
    dtype: str | None = None,
    extra_rows: Mapping[str, Any] | None = None,
) -> Chosen:
    """Write what a run has trained as a folder.

    Args:
        run: finished or not.
        folder: what `genlab.load` reads afterwards, where it is a generator.
        choice: which weights.
        dtype: what they are stored in; None is float32.
        extra_rows: more rows for the model card's table.
    """
    product, chosen = make_product(run, choice, extra_rows)
    if dtype is not None:
        product.to(dtype=getattr(torch, dtype))
    product.save_pretrained(folder)
    return chosen
