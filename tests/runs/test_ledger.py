"""The sample ledger: it goes on after any stop, computes nothing twice and mixes nothing up."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import DiffusionGenerator
from genlab.data.pixels import to_uint8
from genlab.errors import OutputError, SamplingError
from genlab.files import write_text
from genlab.runs.drawing import draw_samples
from genlab.runs.ledger import SampleLedger
from genlab.runs.plan import SamplePlan
from genlab.runs.processes import Processes
from genlab.samplers.sampler import Sampler

SAMPLER = Sampler.from_config({"schedule": {"num_steps": 2}})


class StopError(Exception):
    """What the tests throw into a run."""


def plan(seeds: Any = range(10), **changes: Any) -> SamplePlan:
    seeds = tuple(seeds)
    labels = tuple(seed % 3 for seed in seeds)
    settings: dict[str, Any] = {
        "seeds": seeds,
        "labels": labels,
        "image_shape": (1, 8, 8),
        "identity": {"weights_sha256": "w", "sampler": SAMPLER.config},
        "class_names": ("a", "b", "c"),
        "title": "tiny",
    }
    return SamplePlan(**settings | changes)


@pytest.fixture
def draw(tiny_generator: DiffusionGenerator) -> Callable[..., bool]:
    def run(folder: Path, made: SamplePlan, **options: Any) -> bool:
        usual: dict[str, Any] = {"sampler": SAMPLER, "batch_size": 4, "config": {"model": "tiny"}}
        return draw_samples(tiny_generator, made, folder, **usual | options)

    return run


def stop_after(images: float) -> Callable[[float], None]:
    """Stop the run when so many images were computed."""
    done = 0.0

    def count(more: float) -> None:
        nonlocal done
        done += more
        if done > images:
            raise StopError

    return count


def content(folder: Path) -> dict[str, bytes]:
    """All files, the manifest without its timings."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(files["manifest.json"])
    manifest["spent"] = None
    files["manifest.json"] = json.dumps(manifest).encode()
    return files


FORMATS = ("png", "zip", "npz")


@pytest.mark.parametrize(
    ("format_", "animation", "after"),
    [("png", None, 0), ("png", "gif", 5), ("zip", None, 5), ("npz", "gif", 9.9)],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    draw: Callable[..., bool], tmp_path: Path, format_: str, animation: str | None, after: float
) -> None:
    made = plan(format=format_, animation=animation)
    assert draw(tmp_path / "whole", made)
    with pytest.raises(StopError):
        draw(tmp_path / "stopped", made, on_progress=stop_after(after))
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    assert draw(tmp_path / "stopped", made)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert not (tmp_path / "whole" / ".genlab").exists()


def test_nothing_is_computed_twice(draw: Callable[..., bool], tmp_path: Path) -> None:
    computed: list[int] = []
    with pytest.raises(StopError):
        draw(tmp_path, plan(), on_progress=stop_after(5))  # in the second batch of 4
    draw(tmp_path, plan(), on_start=lambda todo, total: computed.append(todo))
    assert computed == [6]
    assert not draw(tmp_path, plan(), on_start=lambda todo, total: computed.append(todo))
    assert computed == [6]


def test_the_images_are_those_of_the_generator(
    draw: Callable[..., bool], tiny_generator: DiffusionGenerator, tmp_path: Path
) -> None:
    made = plan([3, 1, 1004])
    draw(tmp_path, made, batch_size=2)
    expected = to_uint8(tiny_generator.sample(made.seeds, made.labels, SAMPLER, 2))
    for seed, pixels in zip(made.seeds, expected, strict=True):
        path = tmp_path / "images" / f"{seed // 1000:05d}" / f"img{seed:08d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels[0])
    labels = json.loads((tmp_path / "images" / "dataset.json").read_text())["labels"]
    assert labels == [
        ["00000/img00000003.png", 0],
        ["00000/img00000001.png", 1],
        ["00001/img00001004.png", 2],
    ]


def test_the_formats_hold_the_same_images(draw: Callable[..., bool], tmp_path: Path) -> None:
    for format_ in FORMATS:
        draw(tmp_path / format_, plan(format=format_))
    with np.load(tmp_path / "npz" / "images.npz") as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert labels.tolist() == list(plan().labels or ())
    for seed, pixels in enumerate(images):
        name = f"00000/img{seed:08d}.png"
        png = tmp_path / "png" / "images" / name
        np.testing.assert_array_equal(np.asarray(Image.open(png)), pixels[..., 0])
    grids = {(tmp_path / format_ / "grid.png").read_bytes() for format_ in FORMATS}
    assert len(grids) == 1


def test_the_manifest_tells_how_it_was_made(draw: Callable[..., bool], tmp_path: Path) -> None:
    draw(tmp_path, plan())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["config"] == {"model": "tiny"}
    assert manifest["identity"]["weights_sha256"] == "w"
    assert manifest["seeds"] == "0-9"
    assert manifest["labels"] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert manifest["nfe"] == 3
    assert manifest["spent"]["nfe_total"] == 30
    assert manifest["spent"]["seconds"] > 0
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["pixel_rule"].startswith("floor")


def test_time_is_that_of_the_sitting_and_evaluations_are_those_of_all(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        draw(tmp_path, plan(), on_progress=stop_after(5))
    notes = tmp_path / ".genlab" / "progress-0.jsonl"
    noted = json.loads(notes.read_text())
    assert noted["images"] == 4
    notes.write_text(json.dumps(noted | {"seconds": 1e6}) + "\n")
    with pytest.raises(StopError):  # a second sitting sets the first one's notes aside
        draw(tmp_path, plan(), on_progress=stop_after(5))
    draw(tmp_path, plan())
    spent = json.loads((tmp_path / "manifest.json").read_text())["spent"]
    assert spent["nfe_total"] == 30
    assert 0 < spent["seconds"] < 1e6
    assert spent["timed"] == 2
    draw(tmp_path, plan(range(12)))  # a finished run that goes on
    spent = json.loads((tmp_path / "manifest.json").read_text())["spent"]
    assert spent["timed"] == 4  # the batch of 8 to 11, whole as ever
    assert spent["nfe_total"] == 30 + 12


def test_a_run_that_draws_nothing_tells_no_time(draw: Callable[..., bool], tmp_path: Path) -> None:
    draw(tmp_path, plan())
    (tmp_path / "grid.png").unlink()
    draw(tmp_path, plan())
    spent = json.loads((tmp_path / "manifest.json").read_text())["spent"]
    assert (spent["seconds"], spent["timed"], spent["nfe_total"]) == (0.0, 0, 30)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_and_write_the_same(
    draw: Callable[..., bool], tiny_model: Path, tmp_path: Path, count: int
) -> None:
    # Threads in the place of processes: they meet where processes meet. 4 have more than 3 batches.
    meeting = Barrier(count)

    def wait() -> None:
        meeting.wait(60)

    def run(rank: int) -> None:
        generator = DiffusionGenerator.from_pretrained(tiny_model)
        draw_samples(
            generator,
            plan(animation="gif"),
            tmp_path / "many",
            sampler=SAMPLER,
            batch_size=4,
            config={"model": "tiny"},
            processes=Processes(rank, count, wait=wait),
        )

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))
    draw(tmp_path / "one", plan(animation="gif"))
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_more_seeds_continue_a_folder(draw: Callable[..., bool], tmp_path: Path) -> None:
    computed: list[int] = []
    draw(tmp_path, plan(range(8)))
    draw(tmp_path, plan(range(16)), on_start=lambda todo, total: computed.append(todo))
    assert computed == [8]
    draw(tmp_path / "whole", plan(range(16)))
    whole = content(tmp_path / "whole")
    assert {name: data for name, data in content(tmp_path).items() if "whole" not in name} == whole


OTHER = {
    "sampler": (
        plan(
            identity={
                "weights_sha256": "w",
                "sampler": {**SAMPLER.config, "schedule": {"num_steps": 9}},
            }
        ),
        "sampler.schedule",
    ),
    "weights": (
        plan(identity={"weights_sha256": "v", "sampler": SAMPLER.config}),
        "weights_sha256 was w",
    ),
    "format": (plan(format="zip"), "format was png, now zip"),
    "classes": (replace(plan(), labels=(2,) * 10), "class of seed 0"),
    "fewer seeds": (plan(range(5)), "seeds were 0-9, now 0-4"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_settings_are_refused_and_overwritten_on_demand(
    draw: Callable[..., bool], tmp_path: Path, kind: str
) -> None:
    other, message = OTHER[kind]
    draw(tmp_path / "a", plan(animation="gif"))
    before = content(tmp_path / "a")
    with pytest.raises(OutputError, match=message):
        draw(tmp_path / "a", other)
    assert content(tmp_path / "a") == before
    draw(tmp_path / "a", other, overwrite=True)
    draw(tmp_path / "b", other)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_other_settings_are_refused_in_an_unfinished_run_too(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        draw(tmp_path, plan(), on_progress=stop_after(5))
    with pytest.raises(OutputError, match="weights_sha256"):
        draw(tmp_path, OTHER["weights"][0])


def test_archives_do_not_grow(draw: Callable[..., bool], tmp_path: Path) -> None:
    draw(tmp_path, plan(format="zip"))
    with pytest.raises(OutputError, match="seeds were 0-9, now 0-15"):
        draw(tmp_path, plan(range(16), format="zip"))


@pytest.mark.parametrize("format_", ["png", "npz"])
def test_an_animation_can_come_later(
    draw: Callable[..., bool], tmp_path: Path, format_: str
) -> None:
    draw(tmp_path / "a", plan(format=format_))
    assert draw(tmp_path / "a", plan(format=format_, animation="webp"))
    draw(tmp_path / "b", plan(format=format_, animation="webp"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_lost_images_are_made_again(draw: Callable[..., bool], tmp_path: Path) -> None:
    draw(tmp_path, plan())
    before = content(tmp_path)
    (tmp_path / "images" / "00000" / "img00000005.png").unlink()
    assert draw(tmp_path, plan())
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["images/mine.txt", "images.zip", "grid.png"])
def test_other_peoples_files_are_never_touched(
    draw: Callable[..., bool], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no run of genlab sample made it"):
            draw(tmp_path, plan(), overwrite=overwrite)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_overwriting_spares_what_we_did_not_write(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    draw(tmp_path, plan())
    for name in ("notes.txt", "images/notes.txt", "images/00000/mine.png"):
        (tmp_path / name).write_text("mine")
    draw(tmp_path, plan([77]), overwrite=True)
    assert (tmp_path / "images" / "00000" / "mine.png").read_text() == "mine"
    assert len(list(tmp_path.rglob("img*.png"))) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_runs_in_one_folder_are_kept_apart(draw: Callable[..., bool], tmp_path: Path) -> None:
    ledger = SampleLedger(tmp_path, plan())
    ledger.open()
    with pytest.raises(OutputError, match="another run is writing"):
        draw(tmp_path, plan())
    ledger.close()
    assert draw(tmp_path, plan())


def test_leftovers_of_killed_processes_go(draw: Callable[..., bool], tmp_path: Path) -> None:
    with pytest.raises(StopError):
        draw(tmp_path, plan(), on_progress=stop_after(5))
    (tmp_path / "images" / "00000" / ".img00000009.png.abc.tmp").write_bytes(b"half")
    (tmp_path / ".manifest.json.abc.tmp").write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"mine")
    with (tmp_path / ".genlab" / "progress-0.jsonl").open("a") as file:
        file.write('{"images": 4, "nf')
    draw(tmp_path, plan())
    assert [p.name for p in tmp_path.rglob(".*")] == [".mine.tmp"]


# Trouble with the disk and the numbers


def test_images_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    generator = DiffusionGenerator.from_pretrained(tiny_model)
    with torch.no_grad():
        next(generator.network.parameters()).fill_(torch.nan)
    with pytest.raises(SamplingError, match=r"3 images are not finite \(seeds 7, 8, 9\)"):
        draw_samples(
            generator, plan([7, 8, 9]), tmp_path / "out", sampler=SAMPLER, batch_size=4, config={}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_failed_before_its_first_image_binds_nobody(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    # As kill -9 in the first batch leaves it.
    ledger = SampleLedger(tmp_path, plan())
    ledger.open()
    assert ledger._lock is not None
    ledger._lock.release()
    assert draw(tmp_path, OTHER["weights"][0])


def test_a_folder_that_is_a_file(draw: Callable[..., bool], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="it is a file"):
        draw(tmp_path / "out", plan())


def test_a_folder_that_cannot_be_written(draw: Callable[..., bool]) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        draw(Path("/proc/out"), plan())


def test_a_manifest_of_somebody_else(draw: Callable[..., bool], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(OutputError, match="not a run of genlab sample"):
        draw(tmp_path, plan())
    assert (tmp_path / "manifest.json").read_text() == '{"name": "web app"}'


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """Mount a disk of the given size, or skip where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        done = None
    if done is None or done.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_full_disk_leaves_nothing_half_written(
    draw: Callable[..., bool], tmp_path: Path, format_: str
) -> None:
    with small_disk(tmp_path / "disk", 120):
        out = tmp_path / "disk" / "out"
        (tmp_path / "disk" / "ballast").write_bytes(b"x" * 80_000)
        with pytest.raises(OutputError, match="No space left on device"):
            draw(out, plan(format=format_))
        assert not list(out.rglob("*.tmp"))
        for path in out.rglob("img*.png"):
            Image.open(path).load()
        assert not (out / f"images.{format_}").exists()
        (tmp_path / "disk" / "ballast").unlink()
        draw(out, plan(format=format_))
        draw(tmp_path / "whole", plan(format=format_))
        assert content(out) == content(tmp_path / "whole")


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from genlab.data.writing import writers
from genlab.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
images = [np.zeros((64, 64, 1), np.uint8)] * 30
try:
    if sys.argv[1].endswith("npz"):
        writers.write_npz(Path(sys.argv[1]), iter(images), (30, 64, 64, 1), [0] * 30)
    else:
        writers.write_zip(Path(sys.argv[1]), [(str(i), bytes(4096)) for i in range(30)], None)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.npz", "a.zip"])
def test_an_archive_that_cannot_grow_leaves_no_file(tmp_path: Path, name: str) -> None:
    # The same as a full disk, for users who may not mount one.
    path = tmp_path / name
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"cannot write {path}: {os.strerror(errno.EFBIG)}"
    assert list(tmp_path.iterdir()) == []


# Files that are not what they seem


@pytest.mark.parametrize(
    "content_", [b"", b"not a picture", "another"], ids=["empty", "text", "png"]
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_that_is_not_as_it_was_noted_is_made_again(
    draw: Callable[..., bool], tmp_path: Path, content_: bytes | str, finished: bool
) -> None:
    draw(tmp_path / "whole", plan())
    if finished:
        draw(tmp_path / "a", plan())
    else:
        with pytest.raises(StopError):
            draw(tmp_path / "a", plan(), on_progress=stop_after(9))
    victim = tmp_path / "a" / "images" / "00000" / "img00000001.png"
    other = victim.with_name("img00000003.png")  # a picture of ours, but of another seed
    victim.write_bytes(other.read_bytes() if isinstance(content_, str) else content_)
    computed: list[int] = []
    assert draw(tmp_path / "a", plan(), on_start=lambda todo, total: computed.append(todo))
    assert computed == [4 if finished else 6]  # its whole batch, and what was to be done anyway
    assert content(tmp_path / "a") == content(tmp_path / "whole")


@pytest.mark.parametrize("format_", ["zip", "npz"])
def test_an_archive_that_is_not_as_it_was_noted_is_made_again(
    draw: Callable[..., bool], tmp_path: Path, format_: str
) -> None:
    for name in ("a", "whole"):
        draw(tmp_path / name, plan(format=format_))
    (tmp_path / "a" / f"images.{format_}").write_bytes(b"")
    assert draw(tmp_path / "a", plan(format=format_))
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_a_foreign_file_in_an_unfinished_run_is_no_sample(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        draw(tmp_path / "a", plan(), on_progress=stop_after(5))
    images = tmp_path / "a" / "images" / "00000"
    (images / "img00000009.png").write_bytes((images / "img00000001.png").read_bytes())
    draw(tmp_path / "a", plan())
    draw(tmp_path / "whole", plan())
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_runs_of_a_version_that_noted_no_hashes_go_on(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    draw(tmp_path / "a", plan())
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["images"]["bytes"], manifest["images"]["sha256"]
    path.write_text(json.dumps(manifest))
    assert not draw(tmp_path / "a", plan())
    (tmp_path / "a" / "images" / "00000" / "img00000001.png").write_bytes(b"")
    assert draw(tmp_path / "a", plan())
    draw(tmp_path / "whole", plan())
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_a_stale_state_beside_a_finished_run_goes(
    draw: Callable[..., bool], tmp_path: Path
) -> None:
    draw(tmp_path / "a", plan())
    before = content(tmp_path / "a")
    state = tmp_path / "a" / ".genlab"
    state.mkdir()
    (state / "plan.json").write_text(json.dumps(OTHER["weights"][0].record() | {"spent": {}}))
    (state / "progress-0.jsonl").write_text('{"images": 4, "nfe": 99, "seconds": 1e6}\n')
    assert not draw(tmp_path / "a", plan())
    assert not state.exists()
    assert content(tmp_path / "a") == before
    state.mkdir()
    (state / "progress-0.jsonl").write_text('{"images": 4, "nfe": 99, "seconds": 1e6}\n')
    assert draw(tmp_path / "a", plan(range(16)))
    spent = json.loads((tmp_path / "a" / "manifest.json").read_text())["spent"]
    assert (spent["nfe_total"], spent["seconds"] < 1e6) == (54, True)


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        order.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().suffix}")
        real_sync(handle)

    def replace_(self: Path, target: Path) -> Path:
        order.append("name")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace_)
    write_text(tmp_path / "a.txt", "text")
    assert order == ["sync .tmp", "name", "sync "]


@pytest.mark.parametrize("size", [float("nan"), float("inf"), None, "many"])
def test_a_manifest_whose_sizes_are_no_numbers(
    draw: Callable[..., bool], tmp_path: Path, size: object
) -> None:
    draw(tmp_path, plan(range(2)))
    file = tmp_path / "manifest.json"
    told = json.loads(file.read_text())
    told["images"]["bytes"][0] = size
    file.write_text(json.dumps(told))
    with pytest.raises(OutputError, match="is not a run of genlab sample"):
        draw(tmp_path, plan(range(2)))
