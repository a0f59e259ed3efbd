"""Scores of samples while a run trains: they are logged, and may stop the run.

They compare models that were trained on the same images and scored by the same settings; for scores
to be ranked, evaluate what came out (`genlab.eval.evaluate`).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from genlab.choices import Fit
from genlab.data.pixels import to_uint8
from genlab.data.sources.latents import LatentDataset
from genlab.errors import ConfigError
from genlab.eval.extractors.base import FeatureExtractor, build_extractor
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.metrics.checks import EvaluationWarning
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.metrics.manifold import PrecisionRecall
from genlab.eval.metrics.memorisation import NearestTrainingImages
from genlab.eval.moments import Moments
from genlab.eval.samples import as_rgb
from genlab.samplers.base import SamplerLike
from genlab.training.config import DataConfig
from genlab.training.loop.batches import open_dataset
from genlab.training.loop.evaluation import Score, Subject

BATCH = 250


@dataclass(kw_only=True)
class SampleScores:
    """Draws images by the averaged weights and compares them with real ones.

    It gives ``fd`` (the Fréchet distance), ``precision`` and ``recall`` against the reference, and
    ``nearest_ratio`` and ``nearest_share``, which tell copies of the images in training (see
    `genlab.eval.metrics.memorisation.NearestTrainingImages`); each with the extractor in brackets.
    The seeds are 0, 1, 2, ... at every call, the classes those of the reference, so that two
    moments of a run differ in the weights alone.

    Attributes:
        extractor: that looks at the images, see `genlab.eval.extractors`.
        reference: real images that samples are compared with: best such as are not trained on.
        training: those in training.
        count: samples, at most as many as the reference has images; None draws as many.
        kimg: every so many thousand images; None is each time that snapshots are stored.
        sampler: how samples are drawn; None is how the run draws its previews.

    Raises:
        ConfigError: the data are latents.
        UnknownNameError: there is no such extractor.
    """

    extractor: str
    reference: DataConfig
    training: DataConfig
    count: int | None = None
    kimg: float | None = None
    sampler: SamplerLike = None
    _shape: tuple[int, int, int] | None = field(default=None, init=False, repr=False)

    @property
    def scores(self) -> Mapping[str, Score]:
        """Name in the log -> how the score is written, and whether higher is better."""
        better = {"fd": False, "precision": True, "recall": True}
        better |= {"nearest_ratio": False, "nearest_share": False}
        return {
            self.name_of(score): Score(higher_is_better=higher) for score, higher in better.items()
        }

    def name_of(self, score: str) -> str:
        """How a score is called in the log.

        >>> from genlab.training.config import DataConfig
        >>> data = DataConfig(path="images.zip")
        >>> SampleScores(extractor="cnn-fmnist", reference=data, training=data).name_of("fd")
        'fd[cnn-fmnist]'
        """
        return f"{score}[{self.extractor}]"

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        """Draw samples of the model in training and score them."""
        if subject.generator is None:
            raise ConfigError("samples are scored of runs that train a generator; leave it out")
        return self.compare(to_uint8(self.draw(subject)))

    def draw(self, subject: Subject) -> Float[Tensor, "N C H W"]:
        """Samples of the classes of the reference, spread over it."""
        assert subject.generator is not None
        self._shape = subject.generator.image_shape
        _, labels = self._reference
        chosen = labels[self._spread(len(labels))].tolist() if labels.min() >= 0 else None
        sampler = subject.sampler if self.sampler is None else self.sampler
        seeds = range(self._number(len(labels)))
        return subject.generator.sample(seeds, chosen, sampler, BATCH)

    def compare(self, images: UInt8[Tensor, "N C H W"]) -> Mapping[str, float]:
        """The scores of samples."""
        samples, real = self._features(images), self._reference_features
        with warnings.catch_warnings():  # fewer images than features say little of one model, but
            warnings.simplefilter("ignore", EvaluationWarning)  # enough of two moments of a run
            distance = frechet_distance(Moments.of(samples), Moments.of(real))
        values = {
            "fd": distance,
            **PrecisionRecall()(_rows(samples), _rows(real)),
            **NearestTrainingImages()(_rows(samples), _rows(self._training_features)),
        }
        return {name: values[name.partition("[")[0]] for name in self.scores}

    def features_of(self, data: DataConfig) -> Float[Tensor, "N d"]:
        """Features of real images."""
        return self._features(self._images(data)[0])

    def _number(self, available: int) -> int:
        return available if self.count is None else min(self.count, available)

    def _spread(self, available: int) -> Int64[Tensor, " n"]:
        return torch.linspace(0, available - 1, self._number(available)).long()

    @cached_property
    def _network(self) -> FeatureExtractor:
        return build_extractor(
            self.extractor
        )  # when first asked: a run that only begins needs none

    @cached_property
    def _reference(self) -> tuple[UInt8[Tensor, "N C H W"], Int64[Tensor, " N"]]:
        return self._images(self.reference)

    @cached_property
    def _reference_features(self) -> Float[Tensor, "N d"]:
        return self.features_of(self.reference)

    @cached_property
    def _training_features(self) -> Float[Tensor, "N d"]:
        return self.features_of(self.training)

    def _images(self, config: DataConfig) -> tuple[UInt8[Tensor, "N C H W"], Int64[Tensor, " N"]]:
        """All of them, of the size and in the channels that the generator draws."""
        if self._shape is not None and config.fit != Fit.none:
            channels, size, _ = self._shape
            config = replace(config, image_size=size, channels=channels)
        dataset = open_dataset(config)
        if isinstance(dataset, LatentDataset):
            raise ConfigError(
                f"{config.path} holds latents, and samples are compared with images; leave the "
                "scores out, and evaluate the model afterwards"
            )
        return dataset.load_all()

    def _features(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        parts = [self._network(as_rgb(part))["features"].cpu() for part in images.split(BATCH)]
        return torch.cat(parts)


def _rows(features: Float[Tensor, "N d"]) -> FeatureSet:
    return FeatureSet(count=len(features), rows={"features": features})
