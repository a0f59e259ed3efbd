"""What users of diffusers try first on a pipeline object."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import genlab
from genlab import DiffusionGenerator, GenLabPipeline
from genlab.errors import ConfigError
from genlab.samplers.schedules.diffusers_scheduler import diffusers_sampler


@pytest.fixture
def folder(tiny_generator: DiffusionGenerator, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_generator.changed(card="# A tiny model\n").save_pretrained(folder)
    return folder


def seeded(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


def drawn(pipe: Any, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    images: torch.Tensor = pipe(1, 5, generator=seeded(2), output_type="pt", **options).images
    return images


def test_diffusers_loads_the_folder_after_import_genlab(folder: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe, GenLabPipeline)
    # Up to rounding: weights that diffusers reads lie in memory otherwise than ours.
    torch.testing.assert_close(drawn(pipe), drawn(GenLabPipeline.from_pretrained(folder)))
    pipe.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "# A tiny model\n"


ORDERS = {
    "genlab first": "import genlab; assert 'diffusers' not in sys.modules; import diffusers",
    "diffusers first": "import diffusers, genlab",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_imports_does_not_matter_and_neither_is_heavy(order: str) -> None:
    code = f"""import sys
{ORDERS[order]}
assert 'genlab.pipelines' not in sys.modules
genlab.GenLabPipeline = mark = object()  # the real one would take seconds
assert diffusers.GenLabPipeline is mark
assert not hasattr(diffusers, 'GenLabPipelin')
assert not any(getattr(finder, 'name', None) == 'diffusers' for finder in sys.meta_path)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bundled_names_resolve(tmp_path: Path) -> None:
    pipe: Any = GenLabPipeline.from_pretrained("dit-fmnist-s")
    assert pipe.config["class_names"][7] == "sneaker"
    assert pipe.card is not None
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == pipe.card
    assert genlab.load(tmp_path).weights_sha256() == genlab.load("dit-fmnist-s").weights_sha256()


def test_the_scheduler_reads_and_setting_it_is_refused_with_a_pointer(folder: Path) -> None:
    pipe: Any = GenLabPipeline.from_pretrained(folder)
    assert pipe.scheduler == pipe.as_generator().sampler
    assert pipe.scheduler.config["schedule"]["name"] == "karras"
    scheduler: Any = DPMSolverMultistepScheduler()
    with pytest.raises(ConfigError, match=r"pipe\(sampler="):
        pipe.scheduler = scheduler
    with pytest.raises(ConfigError, match=r"pipe\(sampler="):
        GenLabPipeline.from_pretrained(folder, scheduler=scheduler)
    # What the message advises works.
    pndm = drawn(pipe, sampler=diffusers_sampler("PNDMScheduler"))
    assert not torch.equal(drawn(pipe, sampler={"solver": "dpmpp"}), pndm)


def test_save_pretrained_keeps_the_card(folder: Path, tmp_path: Path) -> None:
    pipe = GenLabPipeline.from_pretrained(folder)
    assert pipe.as_generator().card == "# A tiny model\n"
    pipe.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "# A tiny model\n"
    of_generator = GenLabPipeline.from_generator(genlab.load(folder))
    of_generator.save_pretrained(tmp_path / "third")
    assert genlab.load(tmp_path / "third").card == "# A tiny model\n"


def test_a_pipeline_and_a_generator_describe_themselves(folder: Path) -> None:
    pipe = GenLabPipeline.from_pretrained(folder)
    described = repr(pipe)
    assert described.startswith("GenLabPipeline(SongUNet, ")
    for words in ("1 x 8 x 8", "3 classes", "heun, 18 steps", "on cpu"):
        assert words in described
    assert repr(pipe.as_generator()) == described.replace("GenLabPipeline", "DiffusionGenerator")
