"""The GAN family: one call of the network makes an image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.data.labels import random_label
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.networks.biggan_deep_hf import BigGANDeepHF
from genlab.networks.gan_base import GeneratorNetwork
from genlab.networks.spectral_norm import fold
from genlab.networks.standing import (
    Moments,
    begin_standing,
    by_batch,
    end_standing,
    keeping_moments,
    normalizations,
    set_moments,
    stored_moments,
)
from genlab.samplers.base import AnySampler, Hook, Layers, Step, call_hooks
from genlab.samplers.gan import GanSampler, check_latents

RGB = 3
"""Channels of a network whose config does not say."""


class GanGenerator(Generator):
    """A generator network that turns seeds and labels into images.

    Args:
        network: the plain network.
        class_names: one name for each class, or None where nobody named them.
        sampler: how this model is sampled best (`genlab.samplers.gan.GanSampler`); what is left out
            is untruncated, or truncation 1 where the network's statistics go by truncation.
        card: text of the model card, written beside the weights.
    """

    family = "gan"
    kind = "GAN"
    network_class = GeneratorNetwork
    sampler_class = GanSampler
    network: GeneratorNetwork

    def __init__(
        self,
        network: GeneratorNetwork,
        *,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | AnySampler | None = None,
        card: str | None = None,
    ) -> None:
        made: Any = network.config
        size = made["img_resolution"]
        super().__init__(
            network,
            image_shape=(made.get("img_channels", RGB), size, size),
            num_classes=network.num_classes,
            class_names=class_names,
            sampler=sampler,
            card=card,
        )
        self._standing: tuple[Any, Moments] | None = None

    def defaults(self) -> Layers:
        """See `Generator.defaults`; statistics that go by truncation need one."""
        below = {"truncation": 1.0} if isinstance(self.network, BigGANDeepHF) else {}
        return [("the defaults", below)]

    def check_sampler(self, sampler: GanSampler) -> None:
        """Refuse settings that do not apply to this network."""
        if isinstance(self.network, BigGANDeepHF):
            _check_indexed(sampler)
        elif sampler.hf_compat:
            raise ConfigError(
                "sampler.hf_compat is about statistics stored by truncation, which this network "
                "has not; leave it out"
            )
        if sampler.statistics.standing and not normalizations(self.network):
            raise ConfigError(
                "sampler.statistics.standing averages statistics of batches, but this network "
                "cannot normalise by any; leave it out"
            )

    def prepare(self) -> None:
        """See `Generator.prepare`; spectral normalisation is done once and for all calls."""
        super().prepare()
        fold(self.network)

    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: GanSampler,
        latents: Float[Tensor, "B Z"] | None = None,
        *,
        hooks: Sequence[Hook] = (),
    ) -> Iterator[Step]:
        """Sample one batch, in one step; see `Generator.steps`.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample.
            sampler: what `build_sampler` made.
            latents: what the network gets, truncated as ``sampler`` says; None draws it.
            hooks: look at the images, or replace them.
        """
        assert labels is not None  # every network of this family has classes
        self.prepare()
        if latents is None:
            latents = sampler.latents(noise, self.network.dim_z)
        check_latents(latents, self.network.dim_z)
        if sampler.statistics.standing:
            standing = self._standing_moments(sampler)
            with keeping_moments(self.network):
                set_moments(self.network, standing)
                images = self._draw(latents, labels, sampler)
        else:
            images = self._draw(latents, labels, sampler)
        self._evaluations += len(latents)
        yield call_hooks(Step(index=0, num_steps=1, x=images), hooks)

    def _draw(
        self, latents: Float[Tensor, "B Z"], labels: Sequence[int], sampler: GanSampler
    ) -> Float[Tensor, "B C H W"]:
        embedding = self.network.embed_labels(torch.tensor(labels, device=self.device))
        z = latents.to(self.device, self.dtype)
        arguments = [z, embedding]
        if isinstance(self.network, BigGANDeepHF):
            arguments.append(sampler.mixture(self.network.num_stats).to(self.device))
        images: Tensor = self.network(*arguments)
        return images

    @torch.no_grad()
    def _standing_moments(self, sampler: GanSampler) -> Moments:
        """Statistics of the samples of seeds 0, 1, 2, ..., the same for every run and process."""
        settings = (asdict(sampler), [p._version for p in self.network.parameters()], self.dtype)
        if self._standing is None or self._standing[0] != settings:
            size = sampler.statistics.batch_size
            with keeping_moments(self.network):
                begin_standing(self.network)
                for number in range(sampler.statistics.standing):
                    self._pass(range(number * size, (number + 1) * size), sampler)
                end_standing(self.network)
                self._standing = settings, stored_moments(self.network)
        return self._standing[1]

    def _pass(self, seeds: Sequence[int], sampler: GanSampler) -> None:
        labels = torch.tensor([random_label(seed, self.num_classes) for seed in seeds])
        z = sampler.latents(NoiseStream(seeds, self.device), self.network.dim_z).to(self.dtype)
        with by_batch(self.network):
            # Not through __call__, which would compile the network once more for a few calls.
            self.network.forward(z, self.network.embed_labels(labels.to(self.device)))

    @classmethod
    def from_facts(
        cls, network: Any, facts: Mapping[str, Any], card: str | None = None
    ) -> "GanGenerator":
        """See `Generator.from_facts`."""
        names, sampler = facts.get("class_names"), facts.get("sampler")
        return cls(network, class_names=names, sampler=sampler, card=card)


def _check_indexed(sampler: GanSampler) -> None:
    """Refuse what contradicts statistics that are stored by truncation."""
    if sampler.truncation is None or sampler.truncation > 1:
        raise ConfigError(
            "this network's statistics are stored by truncation; sampler.truncation must lie "
            f"above 0 and be at most 1, got {sampler.truncation}"
        )
    if sampler.resample:
        raise ConfigError(
            "this network's statistics belong to scaled latents; leave sampler.resample out"
        )
