"""``genlab doctor``: what this machine can do, what GenLab chose on it, what a checkpoint holds."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from genlab.choices import DTYPES
from genlab.cli.common import echo_json, json_option
from genlab.cli.completion import complete_models
from genlab.errors import printable

PACKAGES = ("torchvision", "diffusers", "accelerate", "safetensors", "numpy", "Pillow")

MOST_VALUE = 40_000
"""Characters of one value: the names of a thousand classes, each of which is cut already."""

Metadata = dict[str, Any]


@click.command("doctor")
@click.argument("checkpoint", required=False, shell_complete=complete_models)
@json_option
def command(checkpoint: str | None, as_json: bool) -> None:
    """Say what this machine can do, or what a checkpoint holds.

    Without CHECKPOINT: versions, devices, the number types each of them computes in, what GenLab
    chose for them and why, memory and folders. With CHECKPOINT (a model's name, a folder, an
    adapter or an official file): its metadata. Nothing in it is executed.
    """
    metadata = _machine() if checkpoint is None else _checkpoint(checkpoint)
    if as_json:
        echo_json(metadata)
    else:
        click.echo("\n".join(_lines(metadata)))


def _machine() -> Metadata:
    import torch

    from genlab import compute
    from genlab.checkpoints.bundled import bundled_names
    from genlab.checkpoints.hub.names import kept_names
    from genlab.checkpoints.zoo import catalogue as zoo
    from genlab.finetuning.adapters.folders import kept_adapters

    names = _devices()
    return {
        "versions": {
            "genlab": _version("genlab"),
            "python": f"{platform.python_version()} ({sys.executable})",
            "torch": torch.__version__,  # with the build (+cpu, +cu130), which metadata leave out
            **{package: _version(package) for package in PACKAGES},
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory": _memory(),
        },
        "devices": {
            name: {"what": text, "dtypes": _dtypes(name), **compute.describe(torch.device(name))}
            for name, text in names.items()
        },
        "models": {
            "bundled": bundled_names(),
            "pulled": [name for name in zoo.entries() if zoo.pulled_folder(name)],
            "adapters": list(kept_adapters()),
            "of the hub": kept_names(),
            "cache folder": str(zoo.home()),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    """Memory of the machine, from the kernel where it tells."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return f"{kib['MemTotal'] / 2**20:.1f} GiB, {kib['MemAvailable'] / 2**20:.1f} GiB free"


def _devices() -> dict[str, str]:
    """Device -> what it is; the CPU always, then what torch can use."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    devices = {"cpu": f"{_cpu_name()}, {capability}"}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{gpu.name}, {memory:.0f} GiB, compute {gpu.major}.{gpu.minor}"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _dtypes(device: str) -> list[str]:
    """The number types that this device convolves in, found by trying."""
    import torch

    supported = []
    for name in ("float64", *DTYPES):
        dtype = getattr(torch, name)
        try:
            x = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
            torch.nn.functional.conv2d(x, torch.ones(4, 4, 3, 3, device=device, dtype=dtype))
        except (RuntimeError, TypeError):  # TypeError is how mps refuses float64
            continue
        supported.append(name)
    return supported


def _checkpoint(name: str) -> Metadata:
    from genlab import load
    from genlab.finetuning.adapters.folders import find_adapter
    from genlab.saving.weight_files import shapes_alone

    if (folder := find_adapter(name)) is not None:
        return _adapter(folder)
    with shapes_alone():  # a model of gigabytes is told by its shapes
        generator: Any = load(name)
    network = generator.network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    names = generator.class_names
    return {
        "checkpoint": {
            "source": name,
            "format": _format(name),
            "family": generator.family,
            "network": f"{type(network).__module__}.{type(network).__name__}",
            "parameters": f"{parameters:,}",
            **_shapes(generator),
            "classes": generator.num_classes or "none (unconditional)",
            "class names": ", ".join(names) if names else "none",
            **_diffusion_metadata(generator),
            **_hash(name, generator),
        },
    }


def _hash(name: str, generator: Any) -> Metadata:
    """Of an official file, to compare with what its publisher tells; else of the weights."""
    from genlab.checkpoints.places import find_folder
    from genlab.files import sha256
    from genlab.saving.index import NETWORK
    from genlab.saving.models import stored_sha256

    folder = find_folder(name)
    if folder is None:
        return {"file sha256": sha256(Path(name))} if Path(name).is_file() else {}
    others = [
        (f"{part}/{key}", value)
        for part, model in generator.parts().items()
        for key, value in model.state_dict().items()
    ]
    return {"weights sha256": stored_sha256(folder / NETWORK, generator.network, others)}


def _shapes(generator: Any) -> Metadata:
    """What the model draws: images, latents, or images by way of latents."""
    shape = " x ".join(map(str, generator.image_shape))
    if generator.draws_latents:
        return {"latents": f"{shape}; no autoencoder (--autoencoder FOLDER attaches one)"}
    autoencoder = getattr(generator, "autoencoder", None)
    if autoencoder is None:
        return {"image shape": shape}
    latents = " x ".join(map(str, generator.state_shape))
    has_numbers = not any(tensor.is_meta for tensor in autoencoder.model.state_dict().values())
    return {
        "image shape": shape,
        "autoencoder": f"{type(autoencoder.model).__name__}, latents of {latents}",
        **({"autoencoder sha256": autoencoder.sha256()} if has_numbers else {}),
    }


def _adapter(folder: Path) -> Metadata:
    """What an adapter is, also where its base is not here."""
    from genlab.finetuning.adapters.adapter import read_adapter
    from genlab.finetuning.adapters.describing import base_state, describe_adapter, describe_lines

    read = read_adapter(folder)
    return {"adapter": describe_lines(describe_adapter(read, base_state(read)))}


def _diffusion_metadata(generator: Any) -> Metadata:
    if generator.family != "diffusion":
        return {}
    denoiser = generator.denoiser
    return {
        "null class": "yes" if generator.has_null_class else "no: no classifier-free guidance",
        "preconditioning": generator.preconditioning.to_config(),
        "noise levels": f"{denoiser.sigma_min:g} to {denoiser.sigma_max:g}",
        "sampler": dict(generator.sampler.config),
    }


def _format(name: str) -> str:
    """Where a model comes from; names win over folders, as in `genlab.load`."""
    from genlab.checkpoints.bundled import bundled_names
    from genlab.checkpoints.conversion import guess_format, is_readable_folder
    from genlab.checkpoints.zoo import catalogue as zoo

    if name in bundled_names():
        return "model that comes with GenLab"
    if name in zoo.entries() and zoo.pulled_folder(name) is not None:
        return "model of the zoo"
    path = Path(name)
    if path.is_file():
        return f"{guess_format(path)}, an official file of {path.stat().st_size:,} bytes"
    return f"{guess_format(path)}, a folder" if is_readable_folder(path) else "GenLab folder"


def _lines(metadata: Metadata, indent: str = "") -> list[str]:
    """Metadata as aligned lines, nested ones indented."""
    lines = []
    width = max((len(str(key)) for key in metadata), default=0)
    for key, value in metadata.items():
        if isinstance(value, dict) and not indent:
            lines += [f"{key}:", *_lines(value, "  ")]
        elif isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{printable(key):<{width}}  {_inline(value)}")
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_inline(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_inline(inner) for inner in value) or "none"
    return printable(value, MOST_VALUE)
