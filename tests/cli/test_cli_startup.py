"""Mistakes that need no network are found before torch is imported, which takes seconds."""

import subprocess
import sys

import pytest

MISTAKES = {
    "model": ("sample edm-fmnits", "there is no model 'edm-fmnits'; did you mean 'edm-fmnist'"),
    "class": ("sample edm-fmnist --classes shoe", "knows no class 'shoe'"),
    "label": ("sample edm-fmnist --seeds 0-1 --labels 3,10", "10"),
    "labels": ("sample edm-fmnist --labels 3,4", "2 labels for 16 seeds"),
    "seeds": ("sample edm-fmnist --seeds a-b", "seeds 'a-b'"),
    "path": ("sample ./nowhere", "there is no file or folder nowhere"),
    "setting": ("sample edm-fmnist sampel.x=1", "sampel"),
    "option": ("sample edm-fmnist --stpes 3", "--stpes"),
    "not fetched": ("sample edm-imagenet-64x64-cond-adm", "genlab zoo pull"),
    "scored": ("eval edm-fmnits", "there is no model 'edm-fmnits'"),
}

RUN = """
import atexit, sys
atexit.register(lambda: print("torch" if "torch" in sys.modules else "light"))
from genlab.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_need_no_torch(kind: str) -> None:
    line, message = MISTAKES[kind]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *line.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout.split() == ["light"]


@pytest.mark.parametrize("line", ["--help", "presets", "zoo list", "sample --help", "train --help"])
def test_lists_and_help_need_no_torch(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *line.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "light"


def test_sampling_a_bundled_model_imports_no_adapters_and_no_other_family() -> None:
    """What diffusers' hooks and autoencoders bring takes longer than drawing."""
    code = (
        "import sys, genlab\n"
        "generator = genlab.load('edm-fmnist').to('cpu')\n"
        "generator.sample([0], sampler={'schedule': {'num_steps': 1}})\n"
        "heavy = ('peft', 'diffusers.hooks', 'diffusers.models.autoencoders', 'scipy.stats',\n"
        "         'genlab.networks.dit', 'genlab.networks.biggan', 'genlab.generators.gan')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
