"""The sample ledger: a folder that knows which samples are done, so a run can stop and go on.

Every finished sample is a file, written whole or not at all, whose size and hash are noted; a
batch whose files are all there, as they were noted, is done. Batches are cut from the whole list of
seeds and never from what is left of it, so a batch that is computed after an interruption, or by
another process, is composed as it always was and gives the very same bytes.

Layout of the folder::

    images/00000/img00000012.png    the images by seed, and images/dataset.json with their classes
                                    (format png)
    images.zip, images.npz          the images in one file (formats zip and npz)
    latents/00000/latent00000012.npy, latents.zip, latents.npz
                                    the same of latents (formats npy, zip and npz)
    grid.png, animation.gif         pictures to look at (animation-state.gif shows noisy states)
    manifest.json                   how all this was made; there only when everything else is
    .genlab/                        an unfinished run: its plan, its progress, what it needs to end
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock

from genlab.data.labels import format_seeds, parse_seeds
from genlab.data.writing import pictures, writers
from genlab.data.writing.formats import ARCHIVES
from genlab.data.writing.sample_kinds import KINDS, SampleKind, Stored, kind_named
from genlab.data.writing.writers import Pixels
from genlab.errors import OutputError, reason
from genlab.files import write_bytes, write_text
from genlab.generators.costs import Costs, from_plain, report, to_plain, together
from genlab.runs.finished import (
    Finished,
    fingerprint,
    fingerprint_of,
    from_manifest,
    in_manifest,
    is_archive,
    is_picture,
)
from genlab.runs.lock import lock_folder
from genlab.runs.plan import ANIMATION_STEMS, ANIMATIONS, SamplePlan
from genlab.samplers.tallies import Tallies, add_up, mean_nfe, with_rates

MANIFEST = "manifest.json"
GRID = "grid.png"
GRID_IMAGES = 100
ANIMATION_IMAGES = 16

_STATE = ".genlab"
_OWN = (".manifest", ".grid", ".animation", ".dataset", ".plan")
"""How temporary files of ours begin, beside those of samples."""
_EARLIER = "progress-earlier-"
"""How the names of files begin that hold the notes of earlier sittings."""


@dataclass(frozen=True)
class Work:
    """A batch to compute: seeds, classes, and whether images or frames (of the animation) lack."""

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    images: bool
    frames: bool


class SampleLedger:
    """The samples of one plan in one folder.

    Args:
        folder: where everything goes.
        plan: what is to be made.
        rank: number of this process; process 0 calls `open` before the others start and `finish`
            after they are done.
    """

    def __init__(self, folder: Path, plan: SamplePlan, rank: int = 0) -> None:
        self.folder = folder
        self.plan = plan
        self.rank = rank
        self._state = folder / _STATE
        self._lock: BaseFileLock | None = None
        self._finished = Finished()

    # Opening

    def open(self, overwrite: bool = False) -> bool:
        """Take up the run in the folder, or begin one.

        Args:
            overwrite: throw an earlier run's files away. Files that no run of GenLab made are never
                touched.

        Returns:
            Whether anything is left to do.

        Raises:
            OutputError: the folder is not writable, or holds other images.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"cannot write to {self.folder}: it is a file; -o names a folder")
        before = self._earlier_record()
        if before is None:
            self._check_free()
        elif overwrite:
            self._check_lock()
            self._remove_all(kind_named(before["kind"]))
            before = None
        elif self._is_empty():
            self._remove_pictures()
            before = None  # a run that failed before its first image fixes no settings
        else:
            self.plan.check(before, str(self.folder))
            self._learn(before)
            if self._complete(before):
                self._clear_state()
                return False
        self._check_lock()
        self._remove_leftovers()
        if before is None or (self.folder / MANIFEST).is_file():
            self._clear_state(but="lock")  # of a run that made nothing, or has ended
        self._set_aside()
        record = {
            **self.plan.record(),
            "spent": (before or {}).get("spent", {}),
            "files": {} if before is None else before["files"],
        }
        if before is not None and before["seeds"] != record["seeds"]:
            self._remove_pictures()
        write_text(self._state / "plan.json", json.dumps(record, indent=1))
        (self.folder / MANIFEST).unlink(missing_ok=True)
        return True

    def _earlier_record(self) -> dict[str, Any] | None:
        """The record of an earlier run: its manifest, or the plan of an unfinished one.

        A run that goes on has no manifest; where there is one, a plan beside it is stale.
        """
        for path in (self.folder / MANIFEST, self._state / "plan.json"):
            if path.is_file():
                try:
                    record = json.loads(path.read_text(encoding="utf-8"))
                    kept = ("identity", "format", "seeds", "labels", "spent")
                    earlier = {key: record[key] for key in kept} | {"files": _files_of(record)}
                    Finished().learn(earlier["files"])  # whether sizes and hashes are such
                    return earlier | {"kind": kind_named(record.get("kind")).name}
                except Exception as error:  # JSON may hold anything in any place, at any depth
                    raise OutputError(
                        f"{path} is not a run of genlab sample ({reason(error)}); "
                        "choose another folder with -o"
                    ) from error
        return None

    def _check_free(self) -> None:
        mine = [self._samples, *self._archives(self._kind)]
        for path in [*mine, self.folder / GRID, *self._animations()]:
            if path.exists():
                raise OutputError(
                    f"{path} is there already and no run of genlab sample made it; "
                    "choose another folder with -o"
                )

    def _check_lock(self) -> None:
        if self._lock is None:
            self._lock = lock_folder(self._state / "lock", str(self.folder))

    def _complete(self, before: Mapping[str, Any]) -> bool:
        return (
            (self.folder / MANIFEST).is_file()
            and before["seeds"] == format_seeds(self.plan.seeds)
            and all(map(self._has_image, self.plan.seeds))
            and (not self.plan.grid or _is_filled(self.folder / GRID))
            and (self.plan.animation is None or _is_filled(self._animation))
        )

    def _learn(self, before: Mapping[str, Any]) -> None:
        """Read the fingerprints that an earlier run and all processes of this one recorded."""
        self._finished.learn(before.get("files"))
        for entry in self._notes():
            self._finished.learn(entry.get("files"))

    def _notes(self) -> Iterator[dict[str, Any]]:
        """The record of each batch; a line that was cut short is left out.

        Notes of earlier sittings are marked ``earlier``.
        """
        for path in sorted(self._state.glob("progress-*.jsonl")):
            earlier = path.name.startswith(_EARLIER)
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    yield json.loads(line) | {"earlier": earlier}

    def _set_aside(self) -> None:
        """Keep the records of earlier sessions apart: their evaluations count, their time does not.

        Another machine, or a busier one, may have taken it.
        """
        for path in self._state.glob("progress-*.jsonl"):
            number = 0
            while (aside := self._state / f"{_EARLIER}{number}.jsonl").exists():
                number += 1
            if not path.name.startswith(_EARLIER):
                path.rename(aside)

    # Where things are

    @property
    def _kind(self) -> SampleKind:
        return self.plan.kind

    @property
    def _samples(self) -> Path:
        return self.folder / self._kind.name

    @property
    def archive(self) -> Path | None:
        """The one file of the formats zip and npz."""
        return None if self.plan.is_folder else self.folder / self.plan.place

    def _archives(self, kind: SampleKind) -> list[Path]:
        """Where samples of a kind may lie in one file."""
        return [self.folder / f"{kind.name}.{end}" for end in ARCHIVES]

    @property
    def _tree(self) -> Path:
        """Where finished samples lie: in their place, or aside until the archive is made."""
        return self._samples if self.archive is None else self._state / self._kind.name

    @property
    def _animation(self) -> Path:
        return self.folder / self.plan.animation_file

    def _animations(self) -> list[Path]:
        stems = ANIMATION_STEMS.values()
        return [self.folder / f"{stem}.{end}" for stem in stems for end in ANIMATIONS]

    def _frames(self, seed: int) -> Path:
        return self._state / f"frames-{self.plan.animation_of}" / f"{seed}.npz"

    def _has_image(self, seed: int) -> bool:
        # A finished archive holds every image; only then is it there.
        name, (channels, height, width) = self._name(seed), self.plan.image_shape
        shape = (height, width, channels)
        return self._has_archive() or self._finished.holds(
            self._tree / name, name, lambda path: is_picture(path, shape)
        )

    def _name(self, seed: int) -> str:
        return self._kind.file_name(seed)

    def _has_archive(self) -> bool:
        archive = self.archive
        return archive is not None and self._finished.holds(archive, archive.name, is_archive)

    def _is_empty(self) -> bool:
        """Whether the folder holds no image yet, in any format."""
        return not any(
            any(path.is_file() for path in self._archives(kind))
            or any((self.folder / kind.name).glob(kind.pattern()))
            or any((self._state / kind.name).glob(kind.pattern()))
            for kind in KINDS
        )

    # Work

    def work(self, batch_size: int, rank: int = 0, num_processes: int = 1) -> list[Work]:
        """The batches of one process that are not done yet."""
        self._learn_from_plan()
        seeds, labels = self.plan.seeds, self.plan.labels
        todo = []
        for start in range(rank * batch_size, len(seeds), num_processes * batch_size):
            part = slice(start, start + batch_size)
            batch = seeds[part]
            images = not all(map(self._has_image, batch))
            frames = any(
                self.wants_frames(seed) and not self._frames(seed).is_file() for seed in batch
            )
            if images or frames:
                todo.append(Work(batch, None if labels is None else labels[part], images, frames))
        return todo

    def _learn_from_plan(self) -> None:
        path = self._state / "plan.json"
        if path.is_file():
            self._learn(json.loads(path.read_text(encoding="utf-8")))

    def wants_frames(self, seed: int) -> bool:
        """Whether the animation shows this sample and is still to be made."""
        return (
            self.plan.animation is not None
            and seed in self.plan.seeds[:ANIMATION_IMAGES]
            and not self._animation.is_file()
        )

    def record(
        self,
        work: Work,
        samples: Sequence[Stored],
        frames: Mapping[int, np.ndarray[Any, np.dtype[np.uint8]]],
        captions: Sequence[str],
        nfe: int,
        seconds: float,
        costs: Costs | None = None,
        tallies: Tallies | None = None,
    ) -> None:
        """Write one finished batch.

        Args:
            work: the batch.
            samples: as they are stored, in the order of ``work.seeds``.
            frames: for samples that the animation shows: (steps, H, W, C).
            captions: what stands below each frame.
            nfe: network evaluations for each image.
            seconds: time that the batch took.
            costs: of each model of a stitched run.
            tallies: what the sampler counted beside evaluations.
        """
        each: dict[str, Any] = {"costs": to_plain(costs)} if costs else {}
        each |= {"tallies": tallies} if tallies else {}
        encoded = self._encoded(work, samples)
        files = {name: fingerprint(data) for name, data in encoded.items()}
        self._note({"images": len(samples), "nfe": nfe, "seconds": seconds, "files": files, **each})
        for seed, animation in frames.items():
            buffer = BytesIO()
            np.savez(buffer, frames=animation, captions=np.asarray(captions))
            write_bytes(self._frames(seed), buffer.getvalue())
        for name, data in encoded.items():
            write_bytes(self._tree / name, data)
            self._finished.wrote(name, files[name])

    def _encoded(self, work: Work, samples: Sequence[Stored]) -> dict[str, bytes]:
        """Name and bytes of each file that a batch is written to."""
        pairs = zip(work.seeds, samples, strict=True) if work.images else ()
        return {self._name(seed): self._kind.encode(sample) for seed, sample in pairs}

    def _note(self, entry: Mapping[str, Any]) -> None:
        # Appended, not renamed: a line that is cut short by a crash costs the statistics of one
        # batch, no image.
        path = self._state / f"progress-{self.rank}.jsonl"
        try:
            with path.open("ab+") as file:
                cut = file.tell() > 0 and (file.seek(-1, 2), file.read(1))[1] != b"\n"
                file.write(b"\n" * cut + json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    # Finishing

    def finish(self, about: Mapping[str, Any]) -> None:
        """Make archive, pictures and manifest from the finished samples, and end the run.

        Args:
            about: what the manifest says beyond the plan.
        """
        self._learn_from_plan()  # the other processes have noted theirs, too
        missing = [seed for seed in self.plan.seeds if not self._has_image(seed)]
        if missing:
            raise OutputError(
                f"{len(missing)} {self._kind.name} are missing in {self.folder} (first seed "
                f"{missing[0]}); all processes must write to the same folder; run the command "
                "again to make them"
            )
        self._write_archive()
        self._write_grid()
        self._write_animation()
        self._write_manifest(about)
        with suppress(OSError):  # what is left of it does no harm
            shutil.rmtree(self._state)
        self.close()

    def close(self) -> None:
        """Let another run use the folder; a run that made nothing leaves nothing."""
        if self._lock is None:
            return
        if self._is_empty():
            shutil.rmtree(self._state, ignore_errors=True)
            with suppress(OSError):  # it was there before, or holds other files
                self.folder.rmdir()
        self._lock.release()
        self._lock = None

    def _write_archive(self) -> None:
        seeds, labels = self.plan.seeds, self.plan.labels
        names = [self._name(seed) for seed in seeds]
        if self.archive is None:
            if labels is not None:
                write_text(self._samples / "dataset.json", writers.dataset_json(names, labels))
            return
        if self._has_archive():
            return
        if self.plan.format == "zip":
            encoded = ((name, (self._tree / name).read_bytes()) for name in names)
            writers.write_zip(self.archive, encoded, labels)
        else:
            decoded = (self._kind.decode((self._tree / name).read_bytes()) for name in names)
            self._kind.write_npz(self.archive, decoded, self.plan.image_shape, seeds, labels)
        written = fingerprint_of(self.archive)
        self._finished.wrote(self.archive.name, written)
        self._note({"files": {self.archive.name: written}})

    def _write_grid(self) -> None:
        if not self.plan.grid:
            return
        inputs = self.plan.inputs
        count = min(GRID_IMAGES if inputs is None else GRID_IMAGES // 2, len(self.plan.seeds))
        labels = None if self.plan.labels is None else self.plan.labels[:count]
        images = list(self.first_pictures(count))
        captions = (labels, self.plan.class_names, self._kind.title(self.plan.title))
        if inputs is None:
            picture = pictures.grid(images, *captions)
        else:
            shown = [inputs[seed] for seed in self.plan.seeds[:count]]
            picture = pictures.pairs(shown, images, *captions)
        pictures.write_grid(self.folder / GRID, picture, self._kind.marks())

    def first_pictures(self, count: int) -> Iterator[Pixels]:
        """The first samples of a run that has ended, in the order of the seeds, as pictures."""
        if self.archive is None:
            files = (self._tree / self._name(seed) for seed in self.plan.seeds[:count])
            stored: Iterator[Pixels] = (self._kind.decode(file.read_bytes()) for file in files)
        else:
            stored = self._kind.read_first(self.archive, count)
        return map(self._kind.picture, stored)

    def _write_animation(self) -> None:
        if self.plan.animation is None or self._animation.is_file():
            return
        animations = []
        for seed in self.plan.seeds[:ANIMATION_IMAGES]:
            with np.load(self._frames(seed)) as stored:
                animations.append(stored["frames"])
                captions = stored["captions"]
        frames = [
            pictures.animation_frame(
                [animation[t] for animation in animations], self._kind.title(str(caption))
            )
            for t, caption in enumerate(captions)
        ]
        pictures.write_animation(self._animation, frames)

    def _write_manifest(self, about: Mapping[str, Any]) -> None:
        spent = self._spent()
        counted = spent.get("tallies", {})
        mean = mean_nfe(counted)
        manifest = {
            **about,
            **self.plan.record(),
            self._kind.name: {
                "count": len(self.plan.seeds),
                "shape": list(self.plan.image_shape),
                "path": self.plan.place,
                **in_manifest(*self._result_files()),
            },
            "nfe": spent.get("nfe", 0) if mean is None else mean,
            "spent": spent,
            **self._round_trip(),
        }
        if costs := from_plain(spent.get("costs", {})):
            manifest["stitch"] = report(costs, spent["images"])
        manifest |= with_rates(counted)
        write_text(self.folder / MANIFEST, _readable(manifest))

    def _result_files(self) -> tuple[list[str], dict[str, Path]]:
        """The files that hold the images, in the order of the manifest."""
        names = _result_names(self._kind, self.plan.format, self.plan.seeds)
        folder = self._samples if self.archive is None else self.folder
        return names, {name: folder / name for name in names}

    def _round_trip(self) -> dict[str, Any]:
        """How far the images are from what they were made from, where they should be the same."""
        inputs = self.plan.inputs
        if inputs is None or not self.plan.round_trip:
            return {}
        errors = [
            float(np.square((image.astype(np.float64) - inputs[seed]) / 255).mean())
            for seed, image in zip(
                self.plan.seeds, self.first_pictures(len(self.plan.seeds)), strict=True
            )
        ]
        worst = int(np.argmax(errors))
        return {
            "round_trip": {
                "rmse": round(float(np.mean(errors)) ** 0.5, 6),  # of values in [0, 1]
                "worst_rmse": round(errors[worst] ** 0.5, 6),
                "worst_seed": self.plan.seeds[worst],
            }
        }

    def _spent(self) -> dict[str, Any]:
        """Evaluations of all processes and sessions, lost batches too, and seconds of this session.

        Time stands beside the number of images that it was measured for, ``timed``.
        """
        plan = json.loads((self._state / "plan.json").read_text())
        total = {"nfe": 0, "nfe_total": 0, **plan["spent"], "seconds": 0.0, "timed": 0}
        costs = [from_plain(total.pop("costs", {}))]
        counted = [total.pop("tallies", {})]
        images = total.pop("images", 0)
        for entry in self._notes():
            if "nfe" in entry:
                total["nfe"] = entry["nfe"]
                total["nfe_total"] += entry["nfe"] * entry["images"]
                if not entry["earlier"]:
                    total["seconds"] += entry["seconds"]
                    total["timed"] += entry["images"]
                costs.append(from_plain(entry.get("costs", {})))
                counted.append(entry.get("tallies", {}))
                images += entry["images"]
        total["seconds"] = round(total["seconds"], 3)
        if whole := together(costs):
            total |= {"images": images, "costs": to_plain(whole)}
        if all_counted := add_up(counted):
            total["tallies"] = all_counted
        return total

    # Clearing

    def _remove_all(self, kind: SampleKind) -> None:
        """Remove what an earlier run of a kind made, and nothing else."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._remove_pictures()
        tree = self.folder / kind.name
        for path in (*self._archives(kind), *tree.glob(kind.pattern()), tree / "dataset.json"):
            path.unlink(missing_ok=True)
        for folder in [*tree.glob("*/"), tree]:
            with suppress(OSError):  # it holds files that are not ours, or is not there
                folder.rmdir()
        self._clear_state(but="lock")

    def _clear_state(self, but: str = "") -> None:
        """Remove what is left of a run that has ended."""
        with suppress(OSError):  # it does no harm
            for path in self._state.iterdir():
                if path.name != but:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not but:
                self._state.rmdir()

    def _remove_pictures(self) -> None:
        for path in [self.folder / GRID, *self._animations()]:
            path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove temporary files of killed processes; the lock says that none is at work."""
        places = ["", *(f"{kind.name}/{deep}" for kind in KINDS for deep in ("", "*/"))]
        own = (*(f".{word}" for kind in KINDS for word in (kind.prefix, kind.name)), *_OWN)
        for place in (*places, f"{_STATE}/**/"):
            for path in self.folder.glob(f"{place}.*.tmp"):
                if path.name.startswith(own) or (self._state in path.parents):
                    with suppress(OSError):
                        path.unlink()


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _result_names(kind: SampleKind, format_: str, seeds: Sequence[int]) -> list[str]:
    if format_ in ARCHIVES:
        return [f"{kind.name}.{format_}"]
    return [*map(kind.file_name, seeds)]


def _files_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fingerprints in a plan or a manifest, by name; None in those of old runs."""
    kind = kind_named(record.get("kind"))
    if kind.name not in record:
        files: Mapping[str, Any] | None = record.get("files")
        return files
    names = _result_names(kind, record["format"], parse_seeds(record["seeds"]))
    return from_manifest(names, record[kind.name])


def _readable(manifest: Mapping[str, Any]) -> str:
    """Indented JSON with lists of numbers on one line: 50,000 labels should not be 50,000 lines."""
    text = json.dumps(manifest, indent=2)
    return re.sub(r"\[[\d\s,]+\]", lambda match: " ".join(match[0].split()), text) + "\n"
