"""Fill a sample ledger from a generator: what ``genlab sample`` does, callable from a program."""

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

import genlab
from genlab.data.writing.sample_kinds import SampleKind
from genlab.errors import SamplingError
from genlab.generators.base import Batch, Generator
from genlab.runs.ledger import SampleLedger, Work
from genlab.runs.plan import SamplePlan
from genlab.runs.processes import Processes
from genlab.samplers.base import AnySampler, Step

OnProgress = Callable[[float], None]
"""Called with the number of images, or the fraction of one, that were just done."""


def draw_samples(
    generator: Generator,
    plan: SamplePlan,
    folder: Path,
    *,
    sampler: AnySampler,
    batch_size: int,
    config: Mapping[str, Any],
    processes: Processes | None = None,
    overwrite: bool = False,
    on_start: Callable[[int, int], None] | None = None,
    on_progress: OnProgress | None = None,
) -> bool:
    """Make all images of a plan that the folder does not hold yet.

    Args:
        generator: on its device already.
        plan: what to make.
        folder: where.
        sampler: what `Generator.build_sampler` made.
        batch_size: images at a time.
        config: the merged config, for the manifest.
        processes: this process and its peers, which share the batches out.
        overwrite: start again, whatever the folder holds.
        on_start: called with (images to compute here, images of this process in all).
        on_progress: called after each step.

    Returns:
        Whether there was anything to do.

    Raises:
        OutputError: the folder is not writable, holds other images, or the disk is full.
        SamplingError: images are not finite.
    """
    processes = processes or Processes()
    ledger = SampleLedger(folder, plan, processes.rank)
    try:
        # The others look at the folder only after the first process has put it in order.
        anything = ledger.open(overwrite) if processes.rank == 0 else True
        processes.wait()
        if not anything and processes.count == 1:
            return False
        todo = ledger.work(batch_size, processes.rank, processes.count)
        if on_start is not None:
            on_start(sum(len(w.seeds) for w in todo), len(plan.seeds))
        for work in todo:
            _draw_batch(generator, ledger, work, sampler, on_progress)
        processes.wait()
        if processes.rank == 0 and anything:
            ledger.finish(_about(generator, config, plan.kind))
        processes.wait()
    finally:
        ledger.close()
    return anything


def _draw_batch(
    generator: Generator,
    ledger: SampleLedger,
    work: Work,
    sampler: AnySampler,
    on_progress: OnProgress | None,
) -> None:
    kind = ledger.plan.kind
    rows = [i for i, seed in enumerate(work.seeds) if work.frames and ledger.wants_frames(seed)]
    shown: list[Tensor] = []
    captions: list[str] = []

    def on_step(step: Step) -> None:
        if rows:
            picture = step.picture(ledger.plan.animation_of)[rows]
            shown.append(kind.shown(generator.decode(picture)).cpu())
            captions.append(step.caption)
        if on_progress is not None:
            on_progress(len(work.seeds) / step.num_steps)

    batch = generator.draw(work.seeds, work.labels, sampler, on_step)
    _check_finite(batch, kind)
    frames = {}
    if rows:
        stacked = torch.stack(shown, dim=1).permute(0, 1, 3, 4, 2).numpy()
        frames = {work.seeds[row]: stacked[i] for i, row in enumerate(rows)}
    ledger.record(
        work,
        kind.stored(batch.images),
        frames,
        captions,
        batch.nfe,
        batch.seconds,
        batch.costs,
        batch.tallies,
    )


def _check_finite(batch: Batch, kind: SampleKind) -> None:
    finite = batch.images.isfinite().flatten(1).all(1).tolist()
    bad = [str(seed) for seed, good in zip(batch.seeds, finite, strict=True) if not good]
    if bad:
        shown = ", ".join(bad[:8]) + (" ..." if len(bad) > 8 else "")
        raise SamplingError(
            f"{len(bad)} {kind.name} are not finite (seeds {shown}) and were not written; "
            "try --dtype float32, a smaller guidance scale, or check the model's weights"
        )


def _about(generator: Generator, config: Mapping[str, Any], kind: SampleKind) -> dict[str, Any]:
    """The manifest's entries on model, settings and software."""
    parameter = next(generator.network.parameters())
    return {
        "made_by": f"genlab {genlab.__version__}",
        "config": config,
        "model": {
            "family": generator.family,
            "network": type(generator.network).__name__,
            "num_classes": generator.num_classes,
            "class_names": None if generator.class_names is None else list(generator.class_names),
        },
        **kind.metadata(),
        "device": parameter.device.type,
        "versions": {
            "genlab": genlab.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "numpy": np.__version__,
            "Pillow": PIL.__version__,
        },
    }
