"""The GAN family: one call of the network makes an image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.data.labels import random_label
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.networks.biggan_deep_hf import BigGANDeepHF
from genlab.networks.gan_base import GeneratorNetwork
from genlab.networks.layers.spectral_norm import fold
from genlab.networks.layers.standing_statistics import (
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
from genlab.samplers.gan.langevin import Langevin, latent_gradient
from genlab.samplers.gan.rejection import (
    Rejection,
    Threshold,
    check_judge,
    require_calibration,
)
from genlab.samplers.gan.sampler import GanSampler, check_latents
from genlab.samplers.tallies import REJECTION, Tallies

RGB = 3
"""Channels of a network whose config does not say."""

BURN_IN_BATCH = 64
"""Images at a time where M and gamma of a rejection are found: never those of the run's batches,
which would change them by rounding."""


class GanGenerator(Generator):
    """A generator network that turns seeds and labels into images.

    Args:
        network: the plain network.
        class_names: one name for each class, or None where there are no names.
        sampler: how this model is sampled best (`genlab.samplers.gan.sampler.GanSampler`); what is
            left out is untruncated, or truncation 1 where the network's statistics depend on
            truncation.
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
        self._threshold: tuple[Any, Any, Threshold] | None = None

    @override
    def defaults(self) -> Layers:
        """A truncation, where the statistics depend on one."""
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
        for entry, kind, model in sampler.named_parts():
            check_judge(f"sampler.{entry}", kind, model, self.num_classes, self.image_shape)
            if kind == "discriminator":
                require_calibration(f"sampler.{entry}", model)

    @override
    def prepare(self) -> None:
        """Spectral normalisation is done once for all calls."""
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

        Langevin dynamics has a step for each of its own and one for the last images. It walks
        through latents: an image that a hook replaces counts in the last step alone.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample.
            sampler: what `build_sampler` made.
            latents: what the network gets, truncated as ``sampler`` says; None draws it. With
                rejection these are the first candidates.
            hooks: look at the images, or replace them.
        """
        assert labels is not None  # every network of this family has classes
        self.prepare()
        for _, _, part in sampler.named_parts():
            part.to(self.device)
            part.prepare()
        if latents is None:
            latents = sampler.latents(noise, self.network.dim_z)
        check_latents(latents, self.network.dim_z)
        classes = torch.tensor(labels, device=self.device)
        if sampler.langevin is not None:
            yield from self._walk(noise, latents, classes, sampler, sampler.langevin, hooks)
            return
        tallies: Tallies = {}
        if sampler.rejection is None:
            images = self._draw(latents, classes, sampler)
        else:
            images, tallies = self._draw_accepted(
                noise, latents, classes, sampler, sampler.rejection
            )
        yield call_hooks(Step(index=0, num_steps=1, x=images, tallies=tallies), hooks)

    def _draw(
        self, latents: Float[Tensor, "B Z"], classes: Int64[Tensor, " B"], sampler: GanSampler
    ) -> Float[Tensor, "B C H W"]:
        """Images of latents, counted as evaluations."""
        self._evaluations += len(latents)
        with self.statistics(sampler):
            return self._images(latents, classes, sampler)

    def _images(
        self, latents: Float[Tensor, "B Z"], classes: Int64[Tensor, " B"], sampler: GanSampler
    ) -> Float[Tensor, "B C H W"]:
        return self._of_embedding(latents, self.network.embed_labels(classes), sampler)

    def _of_embedding(
        self, latents: Float[Tensor, "B Z"], embedding: Tensor, sampler: GanSampler
    ) -> Float[Tensor, "B C H W"]:
        arguments = [latents.to(self.device, self.dtype), embedding]
        if isinstance(self.network, BigGANDeepHF):
            arguments.append(sampler.mixture(self.network.num_stats).to(self.device))
        images: Tensor = self.network(*arguments)
        return images

    def draw_embedding(
        self,
        latents: Float[Tensor, "B Z"],
        class_embedding: Float[Tensor, "B E"],
        sampler: GanSampler,
    ) -> Float[Tensor, "B C H W"]:
        """Images of class vectors that need not be rows of the table; gradients flow through.

        Call `prepare` once before, and this within `statistics`.

        Args:
            latents: truncated as ``sampler`` says.
            class_embedding: what the network's ``embed_labels`` gives, or any such vectors.
            sampler: what `build_sampler` made; rejection and walks are left out.
        """
        self._evaluations += len(latents)
        return self._of_embedding(latents, class_embedding.to(self.device, self.dtype), sampler)

    # Rejection

    def _draw_accepted(
        self,
        noise: Noise,
        latents: Float[Tensor, "B Z"],
        classes: Int64[Tensor, " B"],
        sampler: GanSampler,
        rejection: Rejection,
    ) -> tuple[Float[Tensor, "B C H W"], Tallies]:
        """The first image of each sample that the discriminator accepts; see `Rejection`."""
        threshold = self._find_threshold(sampler, rejection)
        again, chance = noise.fork("drs latents"), noise.fork("drs uniforms")
        judge, before = rejection.discriminator, self._counted(rejection.discriminator)
        rows = torch.arange(len(latents))  # of samples without an accepted image
        best = torch.full((len(latents),), -torch.inf, dtype=torch.float64)
        images, tries = None, 0
        for attempt in range(rejection.max_tries):
            if attempt:  # each sample draws on, accepted or not: its stream is its own
                latents = sampler.latents(again, self.network.dim_z)
            drawn = self._draw(latents[rows], classes[rows], sampler)
            images = drawn.clone() if images is None else images
            logits = _on_cpu(judge(drawn, classes[rows]))
            accepted = threshold.accepts(logits, _on_cpu(chance.rand((), torch.float64))[rows])
            [taken] = torch.nonzero(accepted | (logits > best[rows]), as_tuple=True)
            images[rows[taken]] = drawn[taken]
            best[rows[taken]] = logits[taken]
            tries += len(rows)
            rows = rows[~accepted]
            if not len(rows):
                break
        assert images is not None
        of_judge = self._counted(judge) - before
        self._evaluations += of_judge
        return images, {
            REJECTION: {
                "images": len(latents),
                "accepted": len(latents) - len(rows),
                "exhausted": len(rows),
                "tries": tries,
                "evaluations": tries + of_judge,
                "max_logit": threshold.max_logit,
                "gamma": threshold.gamma,
            }
        }

    @torch.no_grad()
    def _find_threshold(self, sampler: GanSampler, rejection: Rejection) -> Threshold:
        """M and gamma, of the samples of seeds 0, 1, 2, ...; not counted as evaluations."""
        settings = (
            self._settings(sampler),
            (rejection.percentile, rejection.burn_in, rejection.epsilon),
        )
        judge = rejection.discriminator
        cached = self._threshold
        if cached is None or cached[0] != settings or cached[1] is not judge:
            logits = []
            with self.statistics(sampler):
                for start in range(0, rejection.burn_in, BURN_IN_BATCH):
                    seeds = range(start, min(start + BURN_IN_BATCH, rejection.burn_in))
                    z, classes = self._of_seeds(seeds, sampler)
                    logits.append(_on_cpu(judge(self._images(z, classes, sampler), classes)))
            cached = self._threshold = settings, judge, rejection.threshold(torch.cat(logits))
        return cached[2]

    # Langevin dynamics

    def _walk(
        self,
        noise: Noise,
        latents: Float[Tensor, "B Z"],
        classes: Int64[Tensor, " B"],
        sampler: GanSampler,
        langevin: Langevin,
        hooks: Sequence[Hook],
    ) -> Iterator[Step]:
        """Langevin dynamics of latents, before they are scaled by truncation; see `Langevin`."""
        scale, bound = sampler.prior
        fresh = noise.fork("langevin")
        z = latents.to(self.device, compute.widest(self.device)) / scale
        num_steps = langevin.steps + 1
        judge = langevin.classifier if langevin.discriminator is None else langevin.discriminator
        for index in range(langevin.steps):
            before = self._counted(judge)
            shown: list[Tensor] = []

            def log_p(z: Float[Tensor, "B Z"], shown: list[Tensor] = shown) -> Float[Tensor, " B"]:
                images = self._images(z * scale, classes, sampler)
                shown.append(images.detach())
                return langevin.log_p(images, classes)

            with self.statistics(sampler):
                gradient = latent_gradient(log_p, z)
            self._evaluations += len(z) + self._counted(judge) - before
            z = langevin.move(z, gradient, fresh, bound)
            yield call_hooks(Step(index=index, num_steps=num_steps, x=shown[0]), hooks)
        images = self._draw(z * scale, classes, sampler)
        yield call_hooks(Step(index=langevin.steps, num_steps=num_steps, x=images), hooks)

    # Statistics

    @contextmanager
    def statistics(self, sampler: GanSampler) -> Iterator[None]:
        """Within this context the network normalises by the statistics that the sampler wants.

        Gradients must be taken inside, too: at its end the stored statistics come back.
        """
        if not sampler.statistics.standing:
            yield
            return
        standing = self._standing_moments(sampler)
        with keeping_moments(self.network):
            set_moments(self.network, standing)
            yield

    def _settings(self, sampler: GanSampler) -> tuple[Any, ...]:
        """What decides how the images of a latent and class look, and which latents there are."""
        chosen = (sampler.truncation, sampler.resample, sampler.statistics, sampler.hf_compat)
        return *chosen, [p._version for p in self.network.parameters()], self.dtype

    def _of_seeds(
        self, seeds: Sequence[int], sampler: GanSampler
    ) -> tuple[Float[Tensor, "B Z"], Int64[Tensor, " B"]]:
        """Latents and classes that these seeds draw by themselves."""
        labels = torch.tensor([random_label(seed, self.num_classes) for seed in seeds])
        z = sampler.latents(NoiseStream(seeds, self.device), self.network.dim_z)
        return z.to(self.dtype), labels.to(self.device)

    @staticmethod
    def _counted(part: Any) -> int:
        return int(part.evaluations)

    @torch.no_grad()
    def _standing_moments(self, sampler: GanSampler) -> Moments:
        """Statistics of the samples of seeds 0, 1, 2, ..., the same for every run and process."""
        settings = self._settings(sampler)
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
        z, classes = self._of_seeds(seeds, sampler)
        with by_batch(self.network):
            # Not through __call__, which would compile the network once more for a few calls.
            self.network.forward(z, self.network.embed_labels(classes))

    @classmethod
    @override
    def from_metadata(
        cls, network: Any, metadata: Mapping[str, Any], card: str | None = None
    ) -> "GanGenerator":
        names, sampler = metadata.get("class_names"), metadata.get("sampler")
        return cls(network, class_names=names, sampler=sampler, card=card)


def _on_cpu(numbers: Tensor) -> Float64[Tensor, " B"]:
    return numbers.detach().to("cpu", torch.float64)


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
