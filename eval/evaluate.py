"""Evaluate a generator or a folder of images: from a configuration to a record."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import genlab
from genlab.checkpoints.zoo.catalogue import home
from genlab.compute import usable_device
from genlab.data.labels import format_seeds, parse_labels
from genlab.data.pixels import PIXEL_RULE
from genlab.data.writing.pictures import grid, write_grid
from genlab.errors import EvaluationError
from genlab.eval.classes import by_number
from genlab.eval.collect import Collected, collect, discard
from genlab.eval.config import EvalConfig
from genlab.eval.extractors.base import FeatureExtractor, build_extractor
from genlab.eval.extractors.null import NullExtractor
from genlab.eval.leaderboard.records import Record
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, LikelihoodMetric, Need
from genlab.eval.metrics.likelihood import likelihoods
from genlab.eval.protocol import (
    build_metrics,
    check_names,
    environment_metadata,
    protocol_metadata,
    summarise,
)
from genlab.eval.references.building import find_reference
from genlab.eval.references.datasets import DATASETS, dataset_name, known_dataset
from genlab.eval.references.files import Reference
from genlab.eval.references.pairs import pairs_picture
from genlab.eval.samples import GeneratedImages, Samples, StoredImages
from genlab.eval.subject import Subject
from genlab.files import text_sha256
from genlab.generators.costs import report, together
from genlab.runs.processes import Processes
from genlab.samplers.base import AnySampler
from genlab.samplers.tallies import TOPICS, add_up, mean_nfe, with_rates
from genlab.training.machine import peak_memory_mib

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, images just done, images in all)."""


def evaluate(
    subject: Subject,
    config: EvalConfig,
    *,
    processes: Processes | None = None,
    on_progress: OnProgress = lambda task, images, total: None,
    pictures: Path | None = None,
) -> Record | None:
    """Score a model or a set of images.

    Args:
        subject: what to score.
        config: how.
        processes: this process and its peers, which share the batches out.
        on_progress: called as the work goes on, see `OnProgress`.
        pictures: a folder for ``nearest.png``, samples beside their nearest training images, where
            the metric ``nearest`` is computed; None draws none.

    Returns:
        The record in the process of rank 0, None in the others.

    Raises:
        EvaluationError: the sets do not fit each other or the metrics.
        GenLabError: anything else that a setting or a file can cause.
    """
    evaluation = Evaluation(subject, config, processes or Processes(), on_progress)
    return evaluation.run(pictures)


class Evaluation:
    """One evaluation; wrong settings are refused here, before the long work.

    Args:
        subject: see `evaluate`, as for the others.
        config: how.
        processes: this process and its peers.
        on_progress: called as the work goes on, see `OnProgress`.
    """

    def __init__(
        self,
        subject: Subject,
        config: EvalConfig,
        processes: Processes,
        on_progress: OnProgress,
    ) -> None:
        self.subject, self.config, self.processes = subject, config, processes
        self.on_progress = on_progress
        self.device = _device(subject, config, processes)
        dataset = config.dataset
        self.dataset = subject.dataset if dataset is None else dataset_name(dataset)
        self.metrics = build_metrics(config.metrics)
        self.feature_metrics = {
            name: metric
            for name, metric in self.metrics.items()
            if isinstance(metric, FeatureMetric)
        }
        self.extractor = self._extractor()
        check_names(config.metrics, self.extractor)
        self.sampler = self._sampler()
        self.num_classes = self._num_classes()
        self._check_outputs()
        self.runs = self._runs()
        self._check_counts(None)

    def _extractor(self) -> FeatureExtractor:
        metrics = self.feature_metrics.values()
        if not any(n.output for m in metrics for n in (*m.needs, *m.reference_needs)):
            return NullExtractor(self.device)
        name = self.config.extractor
        if name == "classifier":
            name = known_dataset(self.dataset, "which classifier looks at the images").classifier
        return build_extractor(name, self.config.weights).to(self.device)

    def _check_outputs(self) -> None:
        for name, metric in self.feature_metrics.items():
            for need in (*metric.needs, *metric.reference_needs):
                if need.output and need.output not in self.extractor.outputs:
                    raise EvaluationError(
                        f"the metric {name} needs the output {need.output!r}, and the extractor "
                        f"{self.extractor.name} has only {', '.join(self.extractor.outputs)}; "
                        "leave the metric out or take another extractor"
                    )
                if need.what == "labels" and self._label_sampling() == "none":
                    raise EvaluationError(
                        f"the metric {name} needs the class of every image, and "
                        f"{self.subject.name} has none; leave the metric out"
                    )

    def _check_counts(self, reference: Reference | None) -> None:
        """Refuse too few images before any is drawn: by the samples alone, or by both."""
        reference_count = None
        if reference is not None:
            rows = reference.features.rows.values()
            reference_count = min([reference.features.count, *map(len, rows)])
        for name, metric in self.feature_metrics.items():
            with _naming(name):
                metric.check_counts(
                    self.runs[0].count, reference_count if metric.reference_needs else None
                )

    def _sampler(self) -> AnySampler | None:
        """How the generator is sampled, made once for all repeats and batches."""
        generator = self.subject.generator
        if generator is None or self.subject.sampler is not None:
            return self.subject.sampler
        sampler: AnySampler = generator.build_sampler(self.config.sampler)
        return sampler

    def _num_classes(self) -> int:
        """How many classes the samples are drawn of: the generator's own, or its guidance's."""
        generator = self.subject.generator
        if generator is None:
            return 0
        return generator.sampled_classes(self.sampler)

    def _label_sampling(self) -> str:
        """How the classes of the samples came about, for the card."""
        if self.subject.images is not None:
            if self.subject.images.labels is None:
                return "none"
            made = self.subject.manifest.get("config", {})
            return str(made.get("classes") or made.get("labels") or "as stored")
        assert self.subject.generator is not None
        return self.config.labels if self.num_classes else "none"

    def _runs(self) -> list[Samples]:
        """One set of samples for each repeat."""
        images, generator, config = self.subject.images, self.subject.generator, self.config
        if images is not None:
            if config.repeats > 1:
                raise EvaluationError(
                    "a folder of images is one draw; repeats need a model, or repeats=1"
                )
            return [self._as_data_set(images)]
        assert generator is not None
        size = self._framed_size(generator.image_shape)
        assert self.sampler is not None
        runs: list[Samples] = []
        for repeat in range(config.repeats):
            first = config.first_seed + repeat * config.count
            seeds = range(first, first + config.count)
            labels = parse_labels(config.labels, seeds, self.num_classes)
            runs.append(GeneratedImages(generator, seeds, labels, self.sampler, config.dtype, size))
        return runs

    def _framed_size(self, image_shape: Sequence[int]) -> int | None:
        """The size at which smaller samples of a data set that is padded are looked at, too."""
        dataset = DATASETS.get(self.dataset or "")
        if dataset is None or dataset.fit != "pad" or max(image_shape[1:]) >= dataset.image_size:
            return None
        return dataset.image_size

    def _as_data_set(self, images: StoredImages) -> StoredImages:
        size = self._framed_size(images.image_shape)
        return images if size is None else images.at(size, "pad")

    def identity(self) -> dict[str, Any]:
        """All that the record depends on but its name, as JSON.

        Equal identities mean equal scores, and costs measured on the same kind of machine. Making
        it reads the reference, and computes its statistics where they are not stored yet; all
        processes must call it.
        """
        reference = self._reference
        return {
            "samples": [samples.identity() for samples in self.runs],
            "dataset": self.dataset,
            "extractor": self.extractor.identity(),
            "reference": None if reference is None else dict(reference.identity),
            "labels": self._label_sampling(),
            "metrics": {name: metric.settings() for name, metric in self.metrics.items()},
            "pixel_rule": PIXEL_RULE,
            "device": environment_metadata(self.device, 1)["device"],
            "genlab": genlab.__version__,
        }

    def run(self, pictures: Path | None = None) -> Record | None:
        """Evaluate, and return the record (in the process of rank 0, None in the others)."""
        reference = self._reference
        self._check_sizes(reference)
        self._check_counts(reference)
        bits = self._bits_per_dimension(reference)
        needs = [need for metric in self.feature_metrics.values() for need in metric.needs]
        values: dict[str, list[float]] = {}
        gathered: list[Collected] = []
        for number, samples in enumerate(self.runs):
            collected = self._collect(samples, needs, number)
            if collected is None:
                continue
            gathered.append(collected)
            if pictures is not None and "nearest" in self.metrics and number == 0:
                self._draw_pairs(collected, reference, pictures)
            for score, value in self._scores(collected.features, reference, bits).items():
                values.setdefault(score, []).append(value)
        record = self._record(values, gathered, reference) if gathered else None
        if self.processes.rank == 0 and needs:  # a likelihood alone draws nothing
            for samples in self.runs:
                discard(self._folder(samples))
        return record

    @cached_property
    def _reference(self) -> Reference | None:
        """The reference; one process makes it, the others find it in the cache."""
        metrics = self.feature_metrics.values()
        needs = [need for metric in metrics for need in metric.reference_needs]
        if not needs and not self._wants_likelihood:
            return None
        if self.config.reference is None:
            raise EvaluationError(
                "these metrics compare with real images; name them with --reference"
            )
        if self.processes.rank > 0:
            self.processes.wait()
        reference = find_reference(
            self.config.reference,
            self.extractor,
            needs,
            dataset=self.dataset,
            split=self.config.reference_split,
            alpha=self.config.alpha,
            on_progress=lambda done, total: self.on_progress("reading the reference", done, total),
        )
        if self.processes.rank == 0:
            self.processes.wait()
        return reference

    @property
    def _wants_likelihood(self) -> bool:
        return any(isinstance(metric, LikelihoodMetric) for metric in self.metrics.values())

    def _bits_per_dimension(self, reference: Reference | None) -> Float[Tensor, " N"] | None:
        """Of each real image under the model, where a metric asks for it."""
        if not self._wants_likelihood:
            return None
        generator = self.subject.generator
        if reference is None or reference.images is None or generator is None:
            raise EvaluationError(
                "bits per dimension need a model and real images; give a model and the images with "
                "--reference PATH"
            )
        if self.processes.rank > 0:
            return None  # the process of rank 0 makes the scores
        images, (_, size, _) = reference.images, generator.image_shape
        if images.image_shape[1] != size:  # a border that was put on is none of the model's
            images = images.at(size)
        return likelihoods(
            generator,
            images,
            self._batch_size,
            lambda done, total: self.on_progress("computing likelihoods", done, total),
        )

    @property
    def _batch_size(self) -> int:
        return self.config.batch_size or (50 if self.device.type == "cpu" else 250)

    def _check_sizes(self, reference: Reference | None) -> None:
        ours = self.runs[0].image_shape[1:]
        size = None if reference is None else reference.image_size
        if size is not None and ours != (size, size):
            raise EvaluationError(
                f"the samples are {ours[1]}x{ours[0]} and the reference {size}x{size}: resizing "
                "alone would decide the score; make a reference of the samples' size with "
                "'genlab eval reference'"
            )

    def _collect(self, samples: Samples, needs: Sequence[Need], number: int) -> Collected | None:
        if not needs:  # no metric needs samples: none are drawn
            if self.processes.rank > 0:
                return None
            nothing = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
            features = FeatureSet(count=0)
            return Collected(features=features, first=nothing, nfe=0, seconds=0.0)
        task = "scoring" if len(self.runs) == 1 else f"scoring, draw {number + 1}"
        return collect(
            samples,
            self.extractor,
            needs,
            batch_size=self._batch_size,
            folder=self._folder(samples),
            processes=self.processes,
            on_progress=lambda images: self.on_progress(task, images, samples.count),
            keep=True,  # until every draw is scored: a run that is killed there loses no image
        )

    def _folder(self, samples: Samples) -> Path:
        """Where the unfinished work on a set of samples lies."""
        key = text_sha256([samples.identity(), self.extractor.identity(), self._batch_size])
        return home() / "evaluations" / key[:24]

    def _scores(
        self,
        samples: FeatureSet,
        reference: Reference | None,
        bits: Float[Tensor, " N"] | None,
    ) -> dict[str, float]:
        real = None if reference is None else reference.features
        scores: dict[str, float] = {}
        for name, metric in self.metrics.items():
            with _naming(name):
                if isinstance(metric, LikelihoodMetric):
                    assert bits is not None
                    values = metric(bits)
                else:
                    values = metric(samples, real)
                for score, value in _as_numbers(values).items():
                    scores[metric.score_name(score, self.extractor)] = value
        return scores

    def _draw_pairs(self, collected: Collected, reference: Reference | None, folder: Path) -> None:
        assert reference is not None
        title = f"{self.subject.name}: samples, their nearest training images, distances"
        write_grid(folder / "nearest.png", pairs_picture(collected, reference, title))

    def _record(
        self,
        values: Mapping[str, Sequence[float]],
        gathered: Sequence[Collected],
        reference: Reference | None,
    ) -> Record:
        protocol = protocol_metadata(
            self.config,
            self.extractor,
            self.metrics,
            None if reference is None else reference.identity,
            gathered[0].features.count,
            self._label_sampling(),
        )
        return Record(
            model=self.subject.name,
            dataset=self.dataset or "unknown",
            scores={name: summarise(runs) for name, runs in values.items()},
            protocol=protocol,
            sampling=self._sampling()
            | self._stitching(gathered)
            | self._tallies(gathered)
            | self._matching(gathered[0].features, reference),
            provenance=self._provenance(),
            environment=environment_metadata(self.device, self.processes.count),
            cost=self._cost(gathered),
            picture=self._picture(gathered[0]),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _sampling(self) -> dict[str, Any]:
        manifest, samples = self.subject.manifest, self.runs[0]
        if not isinstance(samples, GeneratedImages):
            made = manifest.get("identity", {})
            settings = {key: made[key] for key in ("sampler", "dtype") if key in made}
            return settings | ({"seeds": manifest["seeds"]} if "seeds" in manifest else {})
        seeds = [
            seed for run in self.runs if isinstance(run, GeneratedImages) for seed in run.seeds
        ]
        return {
            "sampler": dict(samples.sampler.config),
            "seeds": format_seeds(seeds),
            "dtype": samples.dtype,
        }

    def _stitching(self, gathered: Sequence[Collected]) -> dict[str, Any]:
        """What each model of a stitched run cost, and the share of time that it saved."""
        costs = together([collected.costs for collected in gathered])
        stitch = report(costs, sum(collected.features.count for collected in gathered))
        stitch = stitch or self.subject.manifest.get("stitch", {})
        return {"stitch": stitch} if stitch else {}

    def _tallies(self, gathered: Sequence[Collected]) -> dict[str, Any]:
        """What the sampler counted, with rates: of rejection how many images were accepted."""
        tallies = with_rates(add_up(collected.tallies for collected in gathered))
        manifest = self.subject.manifest
        return tallies or {topic: manifest[topic] for topic in TOPICS if topic in manifest}

    def _matching(self, samples: FeatureSet, reference: Reference | None) -> dict[str, Any]:
        """The classes that were compared by number although one side alone has names."""
        others: dict[str, Sequence[str] | None] = {}
        labels = Need("labels")
        for metric in self.metrics.values():
            if not isinstance(metric, FeatureMetric) or labels not in metric.needs:
                continue
            if any(need.output == "logits" for need in metric.needs):
                others["the classifier"] = samples.logit_names
            if labels in metric.reference_needs and reference is not None:
                others["the reference"] = reference.features.class_names
        names = samples.class_names
        numbered = [other for other, theirs in others.items() if by_number(names, theirs)]
        return {"classes_by_number": numbered} if numbered else {}

    def _provenance(self) -> dict[str, Any]:
        generator = self.subject.generator
        if generator is None:
            made = self.subject.manifest.get("identity", {})
            return {key: made[key] for key in ("family", "weights_sha256") if key in made}
        return {
            "family": generator.family,
            "weights_sha256": generator.weights_sha256(),
            "parameters": sum(p.numel() for p in generator.network.parameters()),
            "ema": self.subject.ema,
        }

    def _cost(self, gathered: Sequence[Collected]) -> dict[str, float]:
        if self.subject.generator is None:
            spent = self.subject.manifest.get("spent", {})
            return _cost_of(spent, self.subject.manifest, self.runs[0].count) if spent else {}
        images = sum(collected.features.count for collected in gathered)
        if images == 0:
            return {"peak_memory_mib": peak_memory_mib()}
        mean = mean_nfe(add_up(collected.tallies for collected in gathered))
        timed = sum(collected.timed for collected in gathered)
        seconds = sum(collected.seconds for collected in gathered)
        return {
            "nfe": gathered[0].nfe if mean is None else mean,
            **({"seconds_per_image": seconds / timed} if timed else {}),
            "peak_memory_mib": peak_memory_mib(),
        }

    def _picture(self, collected: Collected) -> str:
        if len(collected.first) == 0:
            return ""
        pixels = list(collected.first.permute(0, 2, 3, 1).contiguous().numpy())
        buffer = io.BytesIO()
        grid(pixels).save(buffer, format="png", optimize=True)
        return base64.b64encode(buffer.getvalue()).decode()


def _cost_of(spent: Mapping[str, Any], manifest: Mapping[str, Any], count: int) -> dict[str, float]:
    """What a run of ``genlab sample`` cost; its seconds are of the images of its last session."""
    drawn = spent["nfe_total"] / spent["nfe"] if spent.get("nfe_total") else count
    timed = spent.get("timed", drawn)  # manifests once told the seconds of all sittings
    return {
        "nfe": manifest.get("nfe", spent["nfe"]),
        **({"seconds_per_image": spent["seconds"] / timed} if timed else {}),
    }


def _as_numbers(values: Any) -> dict[str, float]:
    """What a metric returned, as plain numbers.

    Raises:
        EvaluationError: it is something else.
    """
    try:
        return {score: float(value) for score, value in values.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"the metric must return a dict of score names and numbers, got {values!r}"
        ) from error


@contextmanager
def _naming(metric: str) -> Iterator[None]:
    """Say which metric an error comes from."""
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"{metric}: {error}") from error


def _device(subject: Subject, config: EvalConfig, processes: Processes) -> torch.device:
    if processes.device is not None:
        return processes.device
    if subject.generator is not None:
        return subject.generator.device
    return usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
