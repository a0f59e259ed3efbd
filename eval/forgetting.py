"""Measures of forgetting: what is left at a class's label, in the class table, in the layers.

A model that no longer draws a class has not lost it. Three questions tell how far it went: does a
classifier see the class at its label; does it come back when its row of the class table is trained
on a few images; and can a linear probe read it off a middle block?
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from genlab.choices import check_least
from genlab.data.class_names import match_classes
from genlab.data.pixels import from_uint8, to_uint8
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.errors import ConfigError, EvaluationError, LabelError
from genlab.eval.extractors.base import FeatureExtractor
from genlab.eval.metrics.classification import class_consistency
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.eval.samples import as_rgb
from genlab.finetuning.adapters.merging import merged
from genlab.finetuning.class_tables.rebuilding import own_tensors, rebuild
from genlab.finetuning.families import family_objective
from genlab.finetuning.layouts import layout_of
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator
from genlab.samplers.base import SamplerLike
from genlab.training.loop.seeds import generator as draws_of

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ForgettingCheck:
    """How forgetting is measured.

    Attributes:
        samples: drawn at each class's label, by the seeds 0, 1, 2, ...
        relearn_images: of each forgotten class, that its row is trained on.
        relearn_steps: of Adam; 0 leaves the question out.
        relearn_lr: its learning rate.
        probe_sigma: noise level of the images that the probe sees.
        ridge: weight of the probe's penalty, for standardised features, > 0.
        seed: of every random number but those of the samples.
    """

    samples: int = 64
    relearn_images: int = 16
    relearn_steps: int = 100
    relearn_lr: float = 3e-2
    probe_sigma: float = 0.3
    ridge: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, samples=1, relearn_images=1, relearn_steps=0)
        for name in ("relearn_lr", "probe_sigma", "ridge"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Both:
    """One number of the model before and after forgetting."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ForgettingReport:
    """What was measured.

    Attributes:
        classes: the forgotten labels.
        extractor: that looked at the samples.
        share: samples at a forgotten label that the classifier gives that class, 0 to 1.
        kept_consistency: samples at kept labels that it gives theirs, 0 to 1.
        kept_fd: Frechet distance of these samples from the real images of the kept classes.
        relearned_share: `share` after the forgotten rows of the class table alone were trained on
            a few images; of the base by the same training, and of the model. None: left out.
        probe_accuracy: real test images of the forgotten classes that a linear probe on a middle
            block finds among all classes, 0 to 1.
        probe_overall: the same of all classes.
        real_images: behind the probe and the Frechet distance.
        check: the settings.
    """

    classes: tuple[int, ...]
    extractor: str
    share: Both
    kept_consistency: Both
    kept_fd: Both
    relearned_share: Both | None
    probe_accuracy: Both
    probe_overall: Both
    real_images: int
    check: ForgettingCheck

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """One sentence for each question."""
        fd = f"fd[{self.extractor}]"
        sentences = [
            f"share of the class at its label: {_arrow(self.share)}",
            f"kept classes: consistency {_arrow(self.kept_consistency)}, "
            f"{fd} {self.kept_fd.before:.4g} -> {self.kept_fd.after:.4g}",
        ]
        if self.relearned_share is not None:
            sentences.append(
                f"share after {self.check.relearn_steps} steps on the class's row alone, with "
                f"{self.check.relearn_images} images: {_arrow(self.relearned_share)}"
            )
        sentences.append(
            f"a linear probe on a middle block finds the class: {_arrow(self.probe_accuracy)} "
            f"(all classes: {_arrow(self.probe_overall)})"
        )
        sentences.append(
            "a class that no longer comes out at its label is not erased: the last two questions "
            "say what is left of it"
        )
        return sentences


def _arrow(change: Both) -> str:
    return f"{change.before:.1%} -> {change.after:.1%}"


def measure_forgetting(
    base: Generator,
    model: Generator,
    classes: Sequence[int],
    extractor: FeatureExtractor,
    images: UInt8[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"],
    *,
    check: ForgettingCheck | None = None,
    sampler: SamplerLike = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> ForgettingReport:
    """Compare a model with the one that it was before it forgot classes.

    Args:
        base: the model before, on its device.
        model: the model after, with the same classes; an adapter of it is merged.
        classes: the forgotten labels.
        extractor: with ``logits`` of a classifier of the same classes, matched by name where both
            have names.
        images: real ones of all classes, of the models' shape: reference of the kept classes,
            material for relearning and for the probe.
        labels: of the images, numbered as the models' classes.
        check: how; None takes the defaults.
        sampler: how both draw; None is each one's own.
        on_stage: called with what comes next.

    Raises:
        ConfigError: a sampler does not fit, or an adapter cannot be merged.
        EvaluationError: the models or the classifier do not fit each other, or images are too few.
    """
    check = check or ForgettingCheck()
    forgotten = tuple(dict.fromkeys(classes))
    pair = _check_models(merged(base), merged(model), forgotten, extractor)
    kept = [label for label in range(base.num_classes) if label not in forgotten]
    real_kept = images[torch.isin(labels, torch.tensor(kept))]
    _check_images(pair[0], images, labels, forgotten, check, len(real_kept))
    extractor.to(base.device)
    reference = Moments.of(_look(extractor, real_kept, "features"))
    shares, agreements, distances = [], [], []
    for name, each in zip(("base", "model"), pair, strict=True):
        on_stage(f"sampling the {name}")
        shares.append(_share(each, forgotten, extractor, check, sampler))
        drawn, theirs = _draw(each, kept, check.samples, sampler)
        agreements.append(class_consistency(_logits(extractor, each, drawn), theirs))
        distances.append(
            frechet_distance(Moments.of(_look(extractor, drawn, "features")), reference)
        )
    relearned = []
    if check.relearn_steps:
        few = torch.cat(
            [(labels == label).nonzero()[: check.relearn_images, 0] for label in forgotten]
        )
        for name, each in zip(("base", "model"), pair, strict=True):
            on_stage(f"training the row of the {name}")
            again = relearn_rows(each, forgotten, images[few], labels[few], check)
            relearned.append(_share(again, forgotten, extractor, check, sampler))
    on_stage("probing")
    probes = [probe(each, images, labels, check) for each in pair]
    recalls = [_recall(right, theirs, forgotten) for right, theirs in probes]
    return ForgettingReport(
        classes=forgotten,
        extractor=extractor.name,
        share=Both(before=shares[0], after=shares[1]),
        kept_consistency=Both(before=agreements[0], after=agreements[1]),
        kept_fd=Both(before=distances[0], after=distances[1]),
        relearned_share=Both(before=relearned[0], after=relearned[1]) if relearned else None,
        probe_accuracy=Both(before=recalls[0], after=recalls[1]),
        probe_overall=Both(before=_mean(probes[0]), after=_mean(probes[1])),
        real_images=len(images),
        check=check,
    )


def _check_models(
    base: Generator, model: Generator, forgotten: Sequence[int], extractor: FeatureExtractor
) -> tuple[DiffusionGenerator, DiffusionGenerator]:
    for each in (base, model):
        if (
            not isinstance(each, DiffusionGenerator)
            or each.autoencoder is not None
            or each.draws_latents
        ):
            raise EvaluationError(
                "forgetting is measured of diffusion models that work on the images themselves; "
                f"this is a {each.kind}"
                + (" on latents" if isinstance(each, DiffusionGenerator) else "")
            )
    assert isinstance(base, DiffusionGenerator)
    assert isinstance(model, DiffusionGenerator)
    same = base.num_classes == model.num_classes and base.image_shape == model.image_shape
    if not same:
        raise EvaluationError(
            f"the models have {base.num_classes} and {model.num_classes} classes and draw images "
            f"of {base.image_shape} and {model.image_shape}; give the model and its own base"
        )
    if not forgotten or not all(0 <= label < base.num_classes for label in forgotten):
        raise EvaluationError(
            f"forgotten labels must lie in 0 ... {base.num_classes - 1}, got {list(forgotten)}"
        )
    if len(forgotten) == base.num_classes:
        raise EvaluationError("all classes are named as forgotten; leave at least one to keep")
    _columns(extractor, base)
    return base, model


def _check_images(
    base: DiffusionGenerator,
    images: Tensor,
    labels: Tensor,
    forgotten: Sequence[int],
    check: ForgettingCheck,
    num_kept: int,
) -> None:
    if tuple(images.shape[1:]) != base.image_shape:
        raise EvaluationError(
            f"the real images are of shape {tuple(images.shape[1:])}, and the model draws "
            f"{base.image_shape}; bring them to that first"
        )
    for label in forgotten:
        count = int((labels == label).sum())
        if count < max(2, check.relearn_images):
            raise EvaluationError(
                f"there are {count} real images of class {label}, and "
                f"{max(2, check.relearn_images)} are needed; give more, or ask for fewer"
            )
    if num_kept < 2:
        raise EvaluationError("there are no real images of kept classes; give some")


def _draw(
    generator: Generator, classes: Sequence[int], count: int, sampler: SamplerLike
) -> tuple[UInt8[Tensor, "N C H W"], Int64[Tensor, " N"]]:
    """Images of each class, ``count`` each, and their labels."""
    labels = [label for label in classes for _ in range(count)]
    images = generator.sample(range(len(labels)), labels, sampler, BATCH)
    return to_uint8(images), torch.tensor(labels, device=images.device)


def _look(
    extractor: FeatureExtractor, images: UInt8[Tensor, "N C H W"], output: str
) -> Float[Tensor, "N d"]:
    parts = [extractor(as_rgb(part), (output,))[output] for part in images.split(BATCH)]
    return torch.cat(parts)


def _logits(
    extractor: FeatureExtractor, generator: Generator, images: UInt8[Tensor, "N C H W"]
) -> Float[Tensor, "N classes"]:
    """The classifier's logits, in the order of the generator's classes."""
    return _look(extractor, images, "logits")[:, _columns(extractor, generator)]


def _columns(extractor: FeatureExtractor, generator: Generator) -> list[int]:
    """The classifier's class that each of the generator's is."""
    count = generator.num_classes
    if extractor.outputs.get("logits") == count:
        try:
            matches = match_classes(count, generator.class_names, count, extractor.class_names)
        except LabelError as error:
            raise EvaluationError(f"{extractor.name} has no class for each: {error}") from error
        columns = [column for column in matches if column is not None]
        if len(set(columns)) == count:
            return columns
    raise EvaluationError(
        f"{extractor.name} does not classify into the model's {count} classes; take a classifier "
        "of the same classes (--extractor)"
    )


def _share(
    generator: Generator,
    classes: Sequence[int],
    extractor: FeatureExtractor,
    check: ForgettingCheck,
    sampler: SamplerLike,
) -> float:
    images, labels = _draw(generator, classes, check.samples, sampler)
    return class_consistency(_logits(extractor, generator, images), labels)


def relearn_rows(
    model: DiffusionGenerator,
    classes: Sequence[int],
    images: UInt8[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"],
    check: ForgettingCheck,
) -> DiffusionGenerator:
    """Train the rows of some classes alone, by the model's own denoising loss.

    Args:
        model: plain; it is not changed.
        classes: whose rows of the class table change.
        images: of these classes, 0 to 255.
        labels: of the images.
        check: steps, learning rate and seed.

    Returns:
        The model with these rows; it shares all other tensors.

    Raises:
        ConfigError: it has no class table.
    """
    network: Any = rebuild(model.network)  # type: ignore[type-var]  # every model's network has a layout
    tables = layout_of(network).tables
    if not tables:
        raise ConfigError("the model has no class table, so none of its rows can be trained")
    names = [f"{table.layer}.weight" for table in tables]
    network.requires_grad_(requires_grad=False)
    own_tensors(network, names)
    weights = []
    for table in tables:
        weight = network.get_submodule(table.layer).weight
        chosen = torch.zeros(weight.shape[table.axis], device=weight.device)
        chosen[list(classes)] = 1
        mask = chosen[:, None] if table.axis == 0 else chosen
        weight.requires_grad_().register_hook(lambda grad, mask=mask: grad * mask)
        weights.append(weight)
    objective = family_objective(model, {"label_dropout": 0.0})
    # Without decay and without a gradient Adam leaves the other rows bit for bit as they are.
    optimizer = torch.optim.Adam(weights, lr=check.relearn_lr)
    device = model.device
    pixels, targets = from_uint8(images.to(device)), labels.to(device)
    size = min(32, len(pixels))
    with torch.enable_grad():
        for step in range(check.relearn_steps):
            draws = draws_of(device, check.seed, "relearn", step)
            picked = torch.randperm(len(pixels), generator=draws, device=device)[:size]
            loss = objective.compute_loss(
                objective.main, {objective.main: network}, pixels[picked], targets[picked], draws
            )
            optimizer.zero_grad(set_to_none=True)
            (loss.total / size).backward()
            optimizer.step()
    network.requires_grad_(requires_grad=False).eval()
    again = type(model).from_metadata(network, {**model.metadata(), **model.parts()}, None)
    assert isinstance(again, DiffusionGenerator)
    return again


@torch.no_grad()
def probe(
    model: DiffusionGenerator,
    images: UInt8[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"],
    check: ForgettingCheck,
) -> tuple[Float[Tensor, " M"], Int64[Tensor, " M"]]:
    """Read the class off a middle block by ridge regression; the network gets no class.

    Every other image of a class trains the probe, the rest test it.

    Args:
        model: it is not changed.
        images: real ones, 0 to 255.
        labels: their classes.
        check: noise level, penalty and seed.

    Returns:
        1 for each test image that is given its class, else 0; and the classes of the test images.
    """
    features = _features(model, images, check).double().cpu()
    labels = labels.cpu()
    train = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        train[(labels == label).nonzero()[::2, 0]] = True
    mean, std = features[train].mean(0), features[train].std(0).clamp(min=1e-8)
    x = (features - mean) / std
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    target = torch.nn.functional.one_hot(labels, model.num_classes).to(x)
    penalty = check.ridge * torch.eye(x.shape[1], dtype=x.dtype)
    penalty[-1, -1] = 1e-9  # the offset is not held back
    weights = torch.linalg.solve(x[train].T @ x[train] + penalty, x[train].T @ target[train])
    predicted = (x[~train] @ weights).argmax(1)
    return (predicted == labels[~train]).float(), labels[~train]


def _features(
    model: DiffusionGenerator, images: UInt8[Tensor, "N C H W"], check: ForgettingCheck
) -> Float[Tensor, "N d"]:
    """What a middle block puts out, averaged over places."""
    network: Any = model.network
    blocks = layout_of(network).blocks
    block = network.get_submodule(blocks[len(blocks) // 2])
    seen: list[Tensor] = []
    model.prepare()

    def keep(module: Any, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        # Tokens are (B, N, d), feature maps (B, d, H, W).
        seen.append(tensor.float().mean(1 if tensor.ndim == 3 else (2, 3)))

    draws = draws_of("cpu", check.seed, "probe")
    handle = block.register_forward_hook(keep)
    try:
        for part in images.split(BATCH):
            clean = from_uint8(part)
            noisy = clean + check.probe_sigma * torch.randn(clean.shape, generator=draws)
            model.denoiser(
                noisy.to(model.device),
                torch.tensor(check.probe_sigma),
                _no_class(model, len(part)),
            )
    finally:
        handle.remove()
    return torch.cat(seen)


def _no_class(model: DiffusionGenerator, count: int) -> Condition:
    """The null class; for a model without one the same mixture of all for every image."""
    if model.has_null_class:
        return Condition(labels=torch.full((count,), NULL_CLASS, device=model.device))
    share = 1 / model.num_classes
    shape = (count, model.num_classes)
    return Condition(labels=torch.full(shape, share, device=model.device))


def _recall(
    right: Float[Tensor, " M"], labels: Int64[Tensor, " M"], classes: Sequence[int]
) -> float:
    return float(right[torch.isin(labels, torch.tensor(list(classes)))].mean())


def _mean(probed: tuple[Tensor, Tensor]) -> float:
    return float(probed[0].mean())
