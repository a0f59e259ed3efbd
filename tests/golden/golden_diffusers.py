"""diffusers' models and schedulers, through `genlab.convert` and the samplers."""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from golden_cases import Case, Run
from golden_told import Told, shared
from torch import Tensor

import genlab
from genlab.checkpoints.readers.diffusers_schedulers import ReplacedSchedulerWarning
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser, Prediction
from genlab.generators import DiffusionGenerator
from genlab.generators.autoencoder import Autoencoder
from genlab.samplers.base import Grid
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler

ANY_SCHEDULE = {"beta_schedule": "linear"}
"""For a model's forward pass alone, which no noise schedule enters."""


def model_folder(case: Case, to: str) -> Path:
    """The case's model as the library keeps it: config.json beside its weights."""
    folder = Path(to)
    shutil.copy(case.folder / "config.json", folder)
    [role] = case.meta["constructors"]
    weights = case.folder / f"{case.meta['weights'][role]}.safetensors"
    shutil.copy(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


@lru_cache(maxsize=32)
def convert(case: Case, config: tuple[tuple[str, Any], ...]) -> DiffusionGenerator:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplacedSchedulerWarning)  # what replaces it is checked
        generator = genlab.convert(model_folder(case, folder), "diffusers", dict(config))
    assert isinstance(generator, DiffusionGenerator)
    return generator


def _forward(run: Run, x: str) -> None:
    network: Any = convert(run.case, tuple(ANY_SCHEDULE.items())).network
    labels = run.optional("class_labels")
    with torch.no_grad():
        classes = network.embed_labels(our_labels(labels, network.label_dim))
        out = network(run.input(x), run.input("timestep").float(), classes)
    run.expect_all({"out": out})


def our_labels(labels: Tensor | None, num_classes: int) -> Tensor | None:
    """Their null class is the row after the last class."""
    return None if labels is None else labels.masked_fill(labels == num_classes, NULL_CLASS)


def hf_dit(run: Run) -> None:
    _forward(run, "hidden_states")


def hf_unet(run: Run) -> None:
    _forward(run, "sample")


def hf_vae(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        autoencoder = Autoencoder.from_pretrained(model_folder(run.case, folder))
    scale = run.case.meta["constructors"]["net"]["config"]["scaling_factor"]
    encoded = autoencoder.encode(run.input("image"))
    assert encoded.std is not None
    mean, std = encoded.mean / scale, encoded.std / scale
    logvar = 2 * std.log()
    run.expect_all(
        {
            "mean": mean,
            "std": std,
            "logvar": logvar,
            "sample": encoded.sample(_Given(run.input("noise"))) / scale,
            "kl": 0.5 * (mean**2 + std**2 - 1 - logvar).sum((1, 2, 3)),
            "decoded": autoencoder.decode(run.input("latent") * scale),
            "decoded_from_mean": autoencoder.decode(encoded.mean),
            "roundtrip_scaled": autoencoder.decode(encoded.mean),
        }
    )


class _Given:
    """One recorded draw after another, in place of a noise stream."""

    def __init__(self, *rows: Tensor) -> None:
        self.rows = list(rows)

    def randn(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rows.pop(0).to(dtype)

    def rand(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        raise AssertionError("uniform numbers are drawn, officially they are not")

    def fork(self, key: str) -> "_Given":
        raise AssertionError(f"a fork {key!r} is drawn from, officially there is none")


class ModelRecorder(Told):
    """Notes the state and the noise level of every call, too."""

    def __init__(self, inner: Denoiser, generator: DiffusionGenerator) -> None:
        super().__init__(inner, generator.network)
        self.states: list[Tensor] = []
        self.sigmas: list[float] = []

    def _note(self, x: Tensor, sigma: Tensor) -> None:
        self.states.append(x)
        self.sigmas.append(float(sigma))

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self._note(x, sigma)
        return super().__call__(x, sigma, condition)

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        self._note(x, sigma)
        return super().predict(x, sigma, condition)


def hf_trajectory(run: Run) -> None:
    params = run.params("scheduler", "scheduler_config", "num_inference_steps", "split")
    config = {
        "_class_name": params["scheduler"],
        **params["scheduler_config"],
        "num_steps": params["num_inference_steps"],
    }
    generator = convert(run.case, tuple(config.items()))
    own = generator.sampler.config
    solver = {**own["solver"], **run.params("step_kwargs")["step_kwargs"]}
    sampler = Sampler.from_config({**own, "solver": solver})
    recorder = ModelRecorder(generator.denoiser, generator)
    labels, latents = run.input("class_labels"), run.input("noise_init")
    # A draw of the step to 0 is multiplied by 0: either side may leave it out.
    official = run.draws()
    needless = 2 if len(official) == params["num_inference_steps"] else 1
    noise = _Given(*official, torch.zeros_like(latents))
    condition = Condition(labels=our_labels(labels, generator.num_classes))
    with torch.no_grad():
        *_, last = sample_steps(
            sampler,
            recorder,
            noise=noise,
            condition=condition,
            image_shape=generator.state_shape,
            device="cpu",
            latents=latents,
        )
    recorder.notes.remove()
    assert len(noise.rows) <= needless, f"{len(noise.rows) - 1} official draws are left over"
    sigmas = Grid.of(sampler.schedule, recorder.noise_levels).sigmas
    in_chain = _is_in_chain(str(params["scheduler"]))
    scales = [(1 + s**2) ** -0.5 if in_chain else 1.0 for s in [*recorder.sigmas[1:], 0.0]]
    states = [*recorder.states[1:], last.x]
    start = float(sigmas[0]) if not in_chain else 1.0
    channels = generator.state_shape[0]
    times = torch.cat([shared(call.told) for call in recorder.calls])
    run.expect_all(
        {
            "trajectory": torch.stack([x * s for x, s in zip(states, scales, strict=True)]),
            "model_outputs": torch.stack([call.said[:, :channels] for call in recorder.calls]),
            "timesteps": times.to(run.reference("timesteps").dtype),
            "init_noise_sigma": torch.tensor(start),
            "sigmas": _their_sigmas(recorder.sigmas),
        }
    )


def _is_in_chain(scheduler: str) -> bool:
    """Whether a scheduler keeps the state as the chain has it, of unit variance."""
    return not scheduler.startswith(("Euler", "Heun"))


def _their_sigmas(visited: list[float]) -> Tensor:
    """The noise levels of the calls, and the final 0."""
    return torch.tensor([*visited, 0.0])


CHECKS: dict[str, Callable[[Run], None]] = {
    "hf_dit": hf_dit,
    "hf_trajectory": hf_trajectory,
    "hf_unet": hf_unet,
    "hf_vae": hf_vae,
}
