"""GenLab's generators as an input of torch-fidelity's command line.

torch-fidelity's own interface for generators draws all latents from one stream and cannot take
labels with NumPy 1.24 and later. A data set has neither problem.
"""

from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from genlab.errors import EvaluationError, LabelError
from genlab.eval.samples import GeneratedImages
from genlab.generators.base import Generator
from genlab.samplers.base import SamplerLike


class GeneratedDataset(Dataset[Tensor]):
    """Image i of a generator, drawn when it is asked for, with its whole block.

    Args:
        images: what is drawn.
        batch_size: images in a block.
    """

    def __init__(self, images: GeneratedImages, batch_size: int) -> None:
        self._images, self._batch_size = images, batch_size
        self._number = -1
        self._block: Tensor | None = None

    def __len__(self) -> int:
        return self._images.count

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """One RGB image, 0 to 255; the same whoever asks, in whatever order."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} images, asked for number {index}")
        number, offset = divmod(index % len(self), self._batch_size)
        if self._block is None or number != self._number:
            self._refuse_forked_gpu()
            start = number * self._batch_size
            stop = min(len(self), start + self._batch_size)
            self._number, self._block = number, self._images.read(start, stop).images.cpu()
        return self._block[offset]

    def _refuse_forked_gpu(self) -> None:
        device = self._images.generator.device
        if device.type != "cpu" and get_worker_info() is not None:
            raise EvaluationError(
                f"a generator on {device} cannot draw in a worker process; call calculate_metrics "
                "with save_cpu_ram=True, which loads in the main process"
            )


def as_torch_fidelity_input(
    generator: Generator,
    seeds: Sequence[int] | int,
    labels: Sequence[int] | None = None,
    sampler: SamplerLike = None,
    batch_size: int = 16,
) -> GeneratedDataset:
    """A data set that ``torch_fidelity.calculate_metrics`` takes as ``input1`` or ``input2``.

    For example::

        images = as_torch_fidelity_input(genlab.load("edm-fmnist"), 10_000, batch_size=64)
        torch_fidelity.calculate_metrics(input1=images, input2="real/", fid=True, batch_size=64)

    Each image follows from its seed alone, so neither batches nor workers change it. torch-fidelity
    hands whole batches to its workers: with the same ``batch_size`` here and there every image is
    drawn once; otherwise some are drawn twice and dropped.

    Args:
        generator: on its device.
        seeds: one for each image, or how many images: 0, 1, and so on.
        labels: one class for each seed; None draws each class from its seed.
        sampler: how to sample; None is the generator's own default.
        batch_size: images drawn at a time.

    Raises:
        EvaluationError: no images, a batch of less than one, or images neither grey nor RGB.
        LabelError: there are not as many labels as seeds.
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    if len(seeds) < 1 or batch_size < 1:
        raise EvaluationError(
            f"torch-fidelity needs images: got {len(seeds)} seeds and a batch size of {batch_size}"
        )
    if labels is not None and len(labels) != len(seeds):
        raise LabelError(f"{len(seeds)} seeds need as many labels, got {len(labels)}")
    built = generator.build_sampler(sampler)  # refuses wrong settings now, not in a worker
    return GeneratedDataset(GeneratedImages(generator, seeds, labels, built), batch_size)
