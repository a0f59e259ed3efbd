"""The autoregressive family: pixel after pixel, with exact likelihoods and inpainting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import override

from genlab.data.labels import check_labels
from genlab.data.pixels import to_uint8
from genlab.data.writing.writers import Pixels
from genlab.diffusion.condition import NULL_CLASS
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, LabelError
from genlab.generators.base import Generator
from genlab.generators.given import by_seed
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.samplers.autoregressive.base import Canvas, PixelModel, PixelSampler
from genlab.samplers.autoregressive.inpainting import Keep, mask
from genlab.samplers.base import AnySampler, Hook, SamplerLike, Step, call_hooks
from genlab.saving.models import weights_sha256


class AutoregressiveGenerator(Generator):
    """An autoregressive model that turns seeds and labels into images.

    Args:
        network: the plain network.
        class_names: one name for each class, or None where there are no names.
        sampler: how this model is sampled best (`genlab.samplers.autoregressive.base`); what is
            left out is cached decoding of the model as it is.
        has_null_class: whether the network was trained with label dropout, which guidance needs.
        card: text of the model card, written beside the weights.
    """

    family = "autoregressive"
    kind = "autoregressive model"
    network_class = AutoregressiveNetwork
    sampler_class = PixelSampler
    network: AutoregressiveNetwork

    def __init__(
        self,
        network: AutoregressiveNetwork,
        *,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | AnySampler | None = None,
        has_null_class: bool = False,
        card: str | None = None,
    ) -> None:
        made: Any = network.config
        self.has_null_class = has_null_class and network.label_dim > 0
        super().__init__(
            network,
            image_shape=(made["in_channels"], made["img_resolution"], made["img_resolution"]),
            num_classes=network.label_dim,
            class_names=class_names,
            sampler=sampler,
            card=card,
        )

    def check_sampler(self, sampler: PixelSampler) -> None:
        """Refuse guidance of a model without a null class."""
        if sampler.guidance_scale != 1 and not self.has_null_class:
            raise ConfigError(
                f"guidance_scale={sampler.guidance_scale:g} needs a model with a null class, which "
                "this one was not trained with; set it to 1 (sampler.temperature below 1 makes "
                "images more typical, too)"
            )

    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: PixelSampler,
        latents: Float[Tensor, "B U H W"] | None = None,
        *,
        hooks: Sequence[Hook] = (),
        images: Float[Tensor, "B C H W"] | None = None,
        keep: Bool[Tensor, "H W"] | Bool[Tensor, "B H W"] | None = None,
    ) -> Iterator[Step]:
        """Sample one batch; see `Generator.steps`.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample; None for an unconditional model.
            sampler: what `build_sampler` made.
            latents: uniform numbers in [0, 1) that decide every pixel; None draws them.
            hooks: look at each step, or replace the images of the last one.
            images: those whose pixels are kept; None draws everything.
            keep: which ones, of all images or of each.

        Raises:
            ConfigError: latents of another shape, or a hook replaces images that are not complete.
        """
        self.prepare()
        shape = (self.network.distribution.num_uniforms, *self.image_shape[1:])
        uniforms = noise.rand(shape) if latents is None else latents.to(self.device)
        if tuple(uniforms.shape[1:]) != shape:
            raise ConfigError(f"latents must be of shape {shape}, got {tuple(uniforms.shape[1:])}")
        classes = self._labels(labels, len(uniforms))
        model = PixelModel(
            self.network,
            classes,
            sampler.guidance_scale,
            space=sampler.guidance_space,
            top_p=sampler.top_p,
        )
        canvas = Canvas(
            uniforms=uniforms,
            temperature=sampler.temperature,
            images=None if images is None else images.to(self.device),
            keep=None if keep is None else keep.to(self.device).reshape(-1, 1, *keep.shape[-2:]),
        )
        for step in sampler.decoder(model, canvas):
            shown = call_hooks(step, hooks)
            if shown is not step and step.index + 1 < step.num_steps:
                raise ConfigError(
                    "pixels of an autoregressive model cannot be replaced while others are drawn "
                    "from them; replace those of the last step, or complete images that keep some"
                )
            yield shown
        self._evaluations += model.evaluations

    def _labels(self, labels: Sequence[int] | None, count: int) -> Int64[Tensor, " B"]:
        chosen = [NULL_CLASS] * count if labels is None else list(labels)
        return torch.tensor(chosen, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def bits_per_dimension(
        self, images: Float[Tensor, "B C H W"], labels: Sequence[int] | None = None
    ) -> Float[Tensor, " B"]:
        """The exact negative log-likelihood in bits for each channel of each pixel.

        Args:
            images: on the grid of levels (8-bit images for 256), as floats in [-1, 1].
            labels: one class for each image; None is the null class, where one was trained.

        Raises:
            ConfigError: the images are of another shape.
            LabelError: classes are missing or out of range.
        """
        self._check_images(images)
        if labels is not None:
            check_labels(labels, range(len(images)), self.num_classes)
        elif self.num_classes and not self.has_null_class:
            raise LabelError(
                f"the likelihood of this model needs classes: give one of {self.num_classes} for "
                "each image"
            )
        self.prepare()
        images = images.to(self.device)
        params = self.network(images, self._labels(labels, len(images)))
        return bits_per_dimension(self.network, params, images)

    def complete(
        self,
        images: Float[Tensor, "N C H W"],
        keep: Keep,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """Inpaint images.

        The model draws a pixel from those before it in reading order: what is drawn fits what is
        kept above it and to its left, not what is kept below.

        Args:
            images: one for each seed, in [-1, 1]; what they show where nothing is kept is ignored.
            keep: so many rows from the top; or which pixels, (H, W) of all images or (N, H, W).
            seeds: one for each image, all different.
            labels: one class for each image; None draws each sample's class from its own stream.
            sampler: how to sample; None is the generator's own default.
            batch_size: images at a time; it changes speed and memory, the images by rounding alone.

        Returns:
            The images, float32, exactly as they were where they are kept.

        Raises:
            ConfigError: shapes or numbers do not fit, or a seed stands twice.
        """
        inpainting = Inpainting(self, images, keep, seeds)
        return inpainting.sample(seeds, labels, sampler, batch_size)

    def _check_images(self, images: Float[Tensor, "B C H W"]) -> None:
        if tuple(images.shape[1:]) != self.image_shape:
            raise ConfigError(
                f"the model knows images of shape {self.image_shape}, got "
                f"{tuple(images.shape[1:])}; bring them to its size and channels"
            )

    @override
    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), "has_null_class": self.has_null_class}

    @classmethod
    @override
    def from_metadata(
        cls, network: Any, metadata: Mapping[str, Any], card: str | None = None
    ) -> "AutoregressiveGenerator":
        return AutoregressiveGenerator(
            network,
            class_names=metadata.get("class_names"),
            sampler=metadata.get("sampler"),
            has_null_class=metadata.get("has_null_class", False),
            card=card,
        )


class Inpainting(AutoregressiveGenerator):
    """A generator whose samples inpaint given images, one for each seed.

    Args:
        generator: whose network and settings it shares.
        images: one for each seed.
        keep: so many rows from the top, or a mask for all images or for each.
        seeds: those that it can be asked for, all different.

    Raises:
        ConfigError: shapes or numbers do not fit, or a seed stands twice.
    """

    def __init__(
        self,
        generator: AutoregressiveGenerator,
        images: Float[Tensor, "N C H W"],
        keep: Keep,
        seeds: Sequence[int],
    ) -> None:
        generator._check_images(images)
        super().__init__(
            generator.network,
            class_names=generator.class_names,
            sampler=generator.sampler,
            has_null_class=generator.has_null_class,
            card=generator.card,
        )
        self._images = by_seed(images, seeds)
        self._keep = mask(keep, self.image_shape)
        if self._keep.ndim == 3 and len(self._keep) != len(seeds):
            raise ConfigError(f"{len(self._keep)} masks for {len(seeds)} seeds; give one for each")
        self._rows = {seed: row for row, seed in enumerate(seeds)}

    @override
    def inputs(self, seeds: Sequence[int]) -> dict[str, Any]:
        images = torch.stack([self._images[seed] for seed in seeds])
        keep = self._keep
        if keep.ndim == 3:
            keep = keep[[self._rows[seed] for seed in seeds]]
        return {"images": images, "keep": keep}

    @override
    def pictures(self, seeds: Sequence[int]) -> dict[int, Pixels]:
        """Grey where pixels are drawn."""
        shown: dict[int, Pixels] = {}
        for seed in seeds:
            keep = self._keep if self._keep.ndim == 2 else self._keep[self._rows[seed]]
            image = torch.where(keep, self._images[seed], 0.0)
            shown[seed] = to_uint8(image).permute(1, 2, 0).numpy()
        return shown

    @override
    def describe_sampler(self, sampler: AnySampler) -> str:
        """How much is kept, too."""
        return f"{super().describe_sampler(sampler)}, {float(self._keep.float().mean()):.0%} kept"

    @override
    def identity(self, sampler: AnySampler | None = None) -> dict[str, Any]:
        """The inpainted images are part of the identity."""
        named = [*((str(seed), image) for seed, image in self._images.items()), ("", self._keep)]
        return {**super().identity(sampler), "completes_sha256": weights_sha256(named)}


def bits_per_dimension(
    network: AutoregressiveNetwork,
    params: Float[Tensor, "B P H W"],
    images: Float[Tensor, "B C H W"],
) -> Float[Tensor, " B"]:
    """Bits for each channel of each pixel, from the network's output for images; in float32."""
    nats = -network.distribution.log_prob(params, images).flatten(1).sum(1)
    return nats / (math.log(2) * images[0].numel())
