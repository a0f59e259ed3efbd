"""Compare methods of fine-tuning at equal steps and equal seconds, each at its own learning rate.

    python benchmarks/finetuning.py SETTINGS.yaml --base MODEL --data IMAGES -o RESULTS/

The images are cut into three parts. Every method is given every learning rate of one list for the
same few steps, and keeps the one with the least loss on the validation images. Then it is trained
with several seeds, to the same number of steps, and on to the number that takes the seconds which
full fine-tuning took. Each time one image for every test image is drawn, of its class, and held
against the test images; against the images in training that a model may have copied, too.

Seconds are those of the processor, of the median step, so that runs side by side do not disturb
each other; with one thread they are what a clock shows on a machine that is free. Memory is the
most that the process took in training, over what it had before.

What is done is kept below the folder of ``--work``: the same command goes on where it stopped.
RESULTS/ gets ``results.json``, ``results.md``, ``scores.png`` and ``samples.png``.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetuning_runs import LOSS, SHOWN, Task, run, split

from genlab.charts import Line, Panel, draw
from genlab.checkpoints.loading import load as load_model
from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.data.writing.pictures import rows
from genlab.data.writing.writers import decode_png
from genlab.errors import ConfigError
from genlab.eval.protocol import environment_metadata
from genlab.files import sha256, write_text
from genlab.training.config import Fit
from genlab.training.machine import hardware

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of values -> how many standard errors the 95 % interval of their mean reaches."""

STEPS, SECONDS = "equal steps", "equal seconds"


@dataclass(kw_only=True)
class Comparison:
    """What is compared; see the top of the file.

    Attributes:
        title: of the pictures.
        fit: how the images get to the base's size.
        images: most images that are taken of the data, evenly over the classes.
        validation_share: of the images, for the choice of learning rates.
        test_share: of the images, to compare samples with.
        methods: name in the tables -> ``name`` and options; ``full`` must be among them, since its
            seconds are what the others get.
        learning_rates: tried for each method.
        search_steps: of each trial.
        steps: of each run.
        warmup_steps: over which the learning rate grows.
        batch_size: images a step.
        mixed_precision: as in training.
        seeds: of the runs; the trials have the first.
        extractor: that looks at the images.
        sampler: how images are drawn.
    """

    title: str
    fit: Fit = Fit.resize
    images: int = 10_000
    validation_share: float = 0.1
    test_share: float = 0.15
    methods: dict[str, Any] = field(default_factory=dict)
    learning_rates: list[float] = field(default_factory=list)
    search_steps: int = 60
    steps: int = 200
    warmup_steps: int = 10
    batch_size: int = 64
    mixed_precision: str = "no"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    extractor: str = "cnn-cifar10"
    sampler: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "full" not in self.methods:
            raise ConfigError("methods must hold full: its seconds are what the others get")
        if len(self.seeds) not in T_95:
            raise ConfigError(f"seeds must be {min(T_95)} to {max(T_95)}, got {len(self.seeds)}")


class Runs:
    """Does tasks in processes of their own, and keeps what came out.

    Args:
        folder: of the results, a JSON file each.
        jobs: processes at a time.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder, self.jobs = folder, jobs
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, tasks: Iterable[Task]) -> list[dict[str, Any]]:
        """What came out of each task, in their order."""
        listed = list(tasks)
        missing = [task for task in listed if not self._path(task).is_file()]
        spawn = multiprocessing.get_context("spawn")  # memory is measured from a fresh start
        with ProcessPoolExecutor(self.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
            for task, result in zip(missing, pool.map(run, missing), strict=True):
                self._keep(task, result)
        return [json.loads(self._path(task).read_text()) for task in listed]

    def _keep(self, task: Task, result: dict[str, Any]) -> None:
        for step, images in result.pop("pictures").items():
            for number, image in enumerate(images):
                self.picture(task, step, number).write_bytes(image)
        write_text(self._path(task), json.dumps(result, indent=2) + "\n")
        print(
            f"{task.name}, learning rate {task.lr:g}, seed {task.seed}: "
            f"{result['seconds_per_step']:.3f} s/step, held-out loss {result[LOSS]:.4f}",
            file=sys.stderr,
        )

    def _path(self, task: Task) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(task), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{task.name}-{task.lr:g}-{task.seed}-{digest[:10]}.json"

    def picture(self, task: Task, step: int, number: int) -> Path:
        """One image that a task drew after a step."""
        return self._path(task).with_suffix(f".{step}.{number}.png")


def choose_rates(
    comparison: Comparison, plain: Task, runs: Runs
) -> tuple[dict[str, float], dict[str, float], list[dict[str, Any]]]:
    """Method -> learning rate, method -> seconds a step, and the trials."""
    trials = [
        replace(plain, name=name, method=method, lr=lr)
        for name, method in comparison.methods.items()
        for lr in comparison.learning_rates
    ]
    results = runs(trials)
    rates, seconds = {}, {}
    for name in comparison.methods:
        own = [r for r in results if r["method"] == name]
        finite = [r for r in own if math.isfinite(r[LOSS])]
        rates[name] = min(finite, key=lambda r: r[LOSS])["lr"]
        seconds[name] = statistics.median(r["seconds_per_step"] for r in own)
    return rates, seconds, results


def scored_steps(comparison: Comparison, seconds: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Method -> the steps after which it is scored."""
    steps = comparison.steps
    limits = (steps // 2 + 1, 2 * steps - 1)  # between them each is scored once, see `Scorer.kimg`
    equal = {
        name: min(max(round(steps * seconds["full"] / each), limits[0]), limits[1])
        for name, each in seconds.items()
    }
    return {name: {STEPS: steps, SECONDS: equal[name]} for name in comparison.methods}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and half-width of its 95 % interval."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "plus_minus": T_95[len(values)] * error}


def summarise(
    comparison: Comparison,
    results: Sequence[Mapping[str, Any]],
    steps: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Method -> what it cost and scored, over the seeds."""
    table = {}
    for name in comparison.methods:
        own = [r for r in results if r["method"] == name]
        costs = ("seconds_per_step", "peak_memory_mib", "stored_bytes", "trainable_parameters")
        entry: dict[str, Any] = {key: statistics.median(r[key] for r in own) for key in costs}
        added = [r["peak_memory_mib"] - r["memory_before_mib"] for r in own]
        entry["training_memory_mib"] = statistics.median(added)
        for when, step in steps[name].items():
            scored = [r["scores"][str(step)] for r in own]
            entry[when] = {
                "steps": step,
                **{score: summary([s[score] for s in scored]) for score in scored[0]},
            }
        table[name] = entry
    return table


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a report."""
    scores = [key for key in next(iter(report["methods"].values()))[STEPS] if key != "steps"]
    lines = [f"Scores by {report['settings']['extractor']}.", ""]
    for when in (STEPS, SECONDS):
        plain = [score.partition("[")[0] for score in scores]
        heads = ["method", "lr", "trains", "s/step", "memory", "stored", "steps", *plain]
        lines += [f"At {when}:", "", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for name, entry in report["methods"].items():
            row = [
                f"`{name}`",
                f"{report['learning_rates'][name]:g}",
                f"{round(entry['trainable_parameters']):,}",
                f"{entry['seconds_per_step']:.3f}",
                f"{entry['training_memory_mib']:.0f} MiB",
                f"{entry['stored_bytes'] / 1000:,.0f} kB",
                f"{entry[when]['steps']}",
                *(f"{v['mean']:.3g} ± {v['plus_minus']:.2g}" for v in map(entry[when].get, scores)),
            ]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def charts(report: Mapping[str, Any], stem: Path) -> None:
    """Scores of each method over the seconds that it trained, with their intervals."""
    methods = report["methods"]
    scores = [key for key in next(iter(methods.values()))[STEPS] if key != "steps"]
    panels = []
    for score in scores[:-1]:
        lines = []
        for name, entry in methods.items():
            points = sorted(
                {entry[when]["steps"]: entry[when][score] for when in (STEPS, SECONDS)}.items()
            )
            values = [value for _, value in points]
            lines.append(
                Line(
                    label=name,
                    x=[steps * entry["seconds_per_step"] for steps, _ in points],
                    y=[value["mean"] for value in values],
                    low=[value["mean"] - value["plus_minus"] for value in values],
                    high=[value["mean"] + value["plus_minus"] for value in values],
                )
            )
        panels.append(Panel(lines=lines, title=score, x_label="seconds of training"))
    draw(panels, stem, title=report["settings"]["title"], columns=2, formats=("png",))


def samples(tasks: Mapping[str, Task], steps: Mapping[str, Mapping[str, int]], runs: Runs) -> Any:
    """A row of images for each method, of the same seeds and classes."""
    images = {}
    for name, task in tasks.items():
        paths = [runs.picture(task, steps[name][SECONDS], number) for number in range(SHOWN)]
        images[name] = [decode_png(path.read_bytes()) for path in paths]
    return rows(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", help="YAML with the fields of Comparison")
    parser.add_argument("--base", required=True, help="the model that all begin from")
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each run")
    args = parser.parse_args()

    comparison = load(Comparison, args.settings, "benchmarks")
    base = load_model(args.base)
    source = ImageDataset(
        args.data,
        image_size=base.image_shape[1],
        channels=base.image_shape[0],
        fit=comparison.fit.value,
    )
    args.work.mkdir(parents=True, exist_ok=True)
    shares = (comparison.validation_share, comparison.test_share)
    split(source, args.work, shares, comparison.images)
    names = source.class_names or [f"class {n}" for n in range(source.num_classes)]
    plain = Task(
        base=args.base,
        folder=str(args.work),
        class_names=list(names),
        name="full",
        method={"name": "full"},
        lr=comparison.learning_rates[0],
        seed=comparison.seeds[0],
        steps=[],
        search_steps=comparison.search_steps,
        batch_size=comparison.batch_size,
        mixed_precision=comparison.mixed_precision,
        warmup_steps=comparison.warmup_steps,
        extractor=comparison.extractor,
        sampler=comparison.sampler,
        threads=args.threads,
    )
    runs = Runs(args.work / "runs", args.jobs)
    rates, seconds, trials = choose_rates(comparison, plain, runs)
    steps = scored_steps(comparison, seconds)
    tasks = [
        replace(
            plain,
            name=name,
            method=method,
            lr=rates[name],
            seed=seed,
            steps=sorted(set(steps[name].values())),
        )
        for seed in comparison.seeds
        for name, method in comparison.methods.items()
    ]
    results = runs(tasks)
    report = {
        "settings": asdict(comparison) | {"fit": comparison.fit.value},
        "base": {"name": Path(args.base).name, "sha256": base.weights_sha256()},
        "data": {"name": Path(args.data).name, "sha256": sha256(Path(args.data))},
        "hardware": hardware(base.device),
        "threads": args.threads,
        "environment": environment_metadata(base.device, 1),
        "learning_rates": rates,
        "trials": trials,
        "methods": summarise(comparison, results, steps),
        "runs": results,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(args.output / "results.json", json.dumps(report, indent=1) + "\n")
    write_text(args.output / "results.md", markdown(report))
    charts(report, args.output / "scores")
    first = {task.name: task for task in tasks if task.seed == comparison.seeds[0]}
    samples(first, steps, runs).save(args.output / "samples.png", optimize=True)
    print(markdown(report))


if __name__ == "__main__":
    main()
