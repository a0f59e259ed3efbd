"""What to do for each kind of run: one function a kind, through GenLab's public calls only."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from golden_adm import CHECKS as ADM
from golden_biggan import CHECKS as BIGGAN
from golden_cads import CHECKS as CADS
from golden_cases import Case, MismatchError, NotBuiltError, Run
from golden_diffusers import CHECKS as DIFFUSERS
from golden_dit import CHECKS as DIT
from golden_editing import CHECKS as EDITING
from golden_finetuning import CHECKS as FINETUNING
from golden_gan_training import gan_training
from golden_gated_pixelcnn import gated_pixelcnn
from golden_guidance import checks as guidance_checks
from golden_metrics import metrics
from golden_noise import RecordedNoise
from golden_peft import CHECKS as PEFT
from golden_phema import CHECKS as PHEMA
from golden_pixelcnnpp import pixelcnnpp
from golden_schedulers import CHECKS as SCHEDULERS
from golden_schedules import gits, kd_discrete, kd_schedule, restart_sampler
from golden_solvers import ds_sampler, kd_sampler, mixture
from golden_stitch import CHECKS as STITCH
from golden_told import Notes, shared
from torch import Tensor
from watching import Watching

import genlab
from genlab.compute import choose
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.losses import LOSSES, LossDraws
from genlab.generators import DiffusionGenerator
from genlab.samplers.base import Grid
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.solvers.general import General

PLANNED = {
    "EDM2": [
        "edm2_encoder",
        "edm2_forward",
        "edm2_grad",
        "edm2_layer",
        "edm2_learning_rate",
        "edm2_loss",
        "edm2_phema_response",
        "edm2_raw",
        "edm2_reference_stats",
        "edm2_sigma_sweep",
        "edm2_snapshot",
        "edm2_train",
        "edm2_train_forward",
        "edm2_training_state",
    ],
}
"""What builds them -> kinds that later issues build; whoever does adds the check to CHECKS and
removes it here."""

REASONS = {kind: what for what, kinds in PLANNED.items() for kind in kinds}

PLANNED_NETWORKS = {("edm2_sampler", "edm2_precond"): "EDM2"}
"""(kind, builder of a network) -> what builds the network: runs of that kind wait for it, others of
the kind have networks that are built."""


def planned(run: Run) -> str | None:
    """What is still to be built before a run can be checked, or None."""
    for made in run.case.meta.get("constructors", {}).values():
        if (run.kind, made.get("builder")) in PLANNED_NETWORKS:
            return PLANNED_NETWORKS[run.kind, made["builder"]]
    return REASONS.get(run.kind)


def check(run: Run) -> None:
    """Check one run.

    Raises:
        MismatchError: numbers differ, or the run holds something that nobody looks at.
        NotBuiltError: its kind stands in `PLANNED`, or its network in `PLANNED_NETWORKS`.
    """
    handler = CHECKS.get(run.kind)
    if (what := planned(run)) is not None:
        raise NotBuiltError(f"{what}: not built yet")
    if handler is not None:
        handler(run)
    else:
        raise MismatchError(
            f"{run.id}: unknown kind {run.kind!r}; teach golden_kinds.py what it means"
        )


@lru_cache(maxsize=4)
def generator_of(case: Case, role: str | None = None) -> DiffusionGenerator:
    """A network of a case as a user gets it: converted, with the kernels chosen for sampling.

    Args:
        case: whose.
        role: which of its networks; None is the only one.
    """
    constructors = case.meta["constructors"]
    if role is None:
        if len(constructors) != 1:
            raise MismatchError(f"{case.name}: one network is expected, got {sorted(constructors)}")
        [role] = constructors
    if role not in constructors:
        raise MismatchError(f"{case.name}: there is no network {role!r}")
    made = constructors[role]
    if made.get("builder") not in BUILDERS:
        raise MismatchError(f"{case.name}: unknown builder {made.get('builder')!r}")
    generator = BUILDERS[made["builder"]](case, f"{case.meta['weights'][role]}.safetensors", made)
    assert isinstance(generator, DiffusionGenerator)
    choose(torch.device("cpu")).prepare(generator.network)
    return generator


def _edm_precond(case: Case, weights: str, made: dict[str, Any]) -> Any:
    config = {"cls": made["cls"], "kwargs": made["kwargs"]}
    return genlab.convert(case.folder / weights, format="edm", config=config)


BUILDERS = {"edm_precond": _edm_precond}


def condition_of(run: Run, labels: str = "class_labels") -> Condition:
    return Condition(labels=run.optional(labels), augment_labels=run.optional("augment_labels"))


def edm_forward(run: Run) -> None:
    denoiser = generator_of(run.case).denoiser
    with torch.no_grad():
        D = denoiser(run.input("x"), run.input("sigma"), condition_of(run))
    run.expect_all({"D": D})


def edm_sigma_sweep(run: Run) -> None:
    generator = generator_of(run.case)
    notes = Notes(generator.network)
    D, told = [], []
    with torch.no_grad():
        for x, sigma in zip(run.input("x"), run.input("sigma"), strict=True):
            D.append(generator.denoiser(x, sigma, condition_of(run)))
            told.append(shared(notes.take().told))
    notes.remove()
    results = {"D": torch.stack(D), "c_noise": torch.stack(told)}
    # D spans orders of magnitude over the noise levels.
    run.expect_all(results, by_row=["D"])


def edm_raw(run: Run) -> None:
    network: Any = generator_of(run.case).network
    noted: list[Tensor] = []
    hook = network.map_noise.register_forward_hook(lambda _, args, out: noted.append(out))
    condition = condition_of(run)
    with torch.no_grad():
        classes = network.embed_labels(condition.labels)
        F = network(run.input("x"), run.input("noise_labels"), classes, condition.augment_labels)
    hook.remove()
    run.expect_all({"F": F, "map_noise": noted[0]})


def edm_grad(run: Run) -> None:
    generator = generator_of(run.case)
    x = run.input("x").clone().requires_grad_()
    generator.network.zero_grad()
    D = generator.denoiser(x, run.input("sigma"), condition_of(run))
    (D * run.input("cotangent")).sum().backward()
    assert x.grad is not None
    run.expect_all({"grad_x": x.grad, **_parameter_gradients(run, generator)})


def edm_round_sigma(run: Run) -> None:
    generator = generator_of(run.case)
    denoiser, preconditioning = generator.denoiser, generator.preconditioning
    sigma = run.input("sigma")
    results = {
        "rounded": denoiser.round_sigma(sigma),
        "sigma_min": torch.tensor(denoiser.sigma_min, dtype=torch.float64),
        "sigma_max": torch.tensor(denoiser.sigma_max, dtype=torch.float64),
    }
    extras: dict[str, Callable[[Any], Tensor]] = {
        "index": lambda p: p.index(sigma),
        "u": lambda p: p.u,
        "t_of_sigma": lambda p: p.t(sigma),
        "sigma_of_t": lambda p: p.sigma(run.input("t")),
    }
    for name, extra in extras.items():
        if name in run.spec["outputs"]:
            results[name] = extra(preconditioning)
    run.expect_all(results)


def edm_loss(run: Run) -> None:
    generator = generator_of(run.case)
    params = run.params("loss", "loss_kwargs")
    loss = LOSSES.build(params["loss"].removesuffix("Loss").lower(), **params["loss_kwargs"])
    level, noise = run.draws()
    generator.network.zero_grad()
    images = run.input("images")
    draws = LossDraws(level=level.flatten(), noise=noise)
    terms = loss(generator.denoiser, images, condition_of(run, "labels"), draws)
    (terms.loss.sum() / len(images)).backward()
    gradients = [p.grad for p in generator.network.parameters() if p.grad is not None]
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients])
    run.expect_all(
        {
            "loss": terms.loss,
            "sigma": terms.sigma.reshape(level.shape),
            "grad_norm": squares.sum().sqrt(),
            **_parameter_gradients(run, generator),
        }
    )


def denoiser_of(run: Run) -> Denoiser:
    """The closed-form model of a run, or else the network of its case."""
    return mixture(run) if run.has("gmm_means") else generator_of(run.case).denoiser


def solver_of_k_diffusion(run: Run) -> None:
    kd_sampler(run, denoiser_of(run), condition_of(run))


def restarts(run: Run) -> None:
    restart_sampler(run, denoiser_of(run), condition_of(run))


def edm_sampler(run: Run) -> None:
    denoiser = denoiser_of(run)
    run.params("trace")  # says only that net_inputs and net_outputs are recorded
    recorder = Recorder(denoiser)
    sampler = Sampler.from_config(sampler_config(run))
    latents = run.input("latents")
    noise = RecordedNoise(run)
    with torch.no_grad():
        *_, last = sample_steps(
            sampler,
            recorder,
            noise=noise,
            condition=condition_of(run),
            image_shape=latents.shape[1:],
            device="cpu",
            latents=latents,
        )
    noise.expect_end()
    grid = Grid.of(sampler.schedule, recorder.noise_levels)
    solver = sampler.solver
    times = solver.times(grid) if isinstance(solver, General) else grid.sigmas
    run.expect_all(
        {
            "images": last.x,
            "t_steps": times,
            "sigma_steps": sampler.schedule(recorder.noise_levels)[:-1],
            "sigma_calls": torch.stack(recorder.sigmas),
            "net_inputs": torch.stack(recorder.inputs),
            "net_outputs": torch.stack(recorder.outputs),
        }
    )


def sampler_config(run: Run) -> dict[str, Any]:
    """The sampler that the official parameters describe, as a config of ours."""
    [which] = run.params("sampler").values()
    churn = run.params("S_churn", "S_min", "S_max", "S_noise")
    levels = run.params("num_steps", "sigma_min", "sigma_max")
    if which == "edm":
        return {
            "solver": {"name": "heun", **churn},
            "schedule": {"name": "karras", **levels, **run.params("rho")},
        }
    if which != "ablation":
        raise MismatchError(f"{run.id}: unknown sampler {which!r}")
    discretization = run.params("discretization").get("discretization", "edm")
    name = {"edm": "karras"}.get(discretization, discretization)
    solver = {"solver": "heun", **run.params("solver", "schedule", "scaling", "alpha", "epsilon_s")}
    if solver["solver"] == "euler":
        solver.pop("alpha", None)  # officially accepted there and without effect
    # The official function takes every setting at once and leaves the others' unused.
    all_own = run.params("rho", "epsilon_s", "C_1", "C_2", "M")
    own = {"karras": ["rho"], "vp": ["epsilon_s"], "iddpm": ["C_1", "C_2", "M"]}.get(name, [])
    return {
        "solver": {"name": "general", **churn, **solver},
        "schedule": {"name": name, **levels, **{k: v for k, v in all_own.items() if k in own}},
    }


class Recorder(Watching):
    """Notes what the solver asks of a denoiser."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.sigmas: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        x0 = self.inner(x, sigma, condition)
        self.sigmas.append(sigma)
        self.inputs.append(x)
        self.outputs.append(x0)
        return x0


def _parameter_gradients(run: Run, generator: DiffusionGenerator) -> dict[str, Tensor]:
    """Gradients of the parameters that the run names, under the official names."""
    parameters = dict(generator.network.named_parameters())
    results = {}
    for name in run.params("params").get("params", []):
        gradient = parameters[name.removeprefix("model.")].grad
        assert gradient is not None
        results[f"grad[{name}]"] = gradient
    return results


CHECKS: dict[str, Callable[[Run], None]] = {
    **ADM,
    **BIGGAN,
    **CADS,
    **DIFFUSERS,
    **DIT,
    **STITCH,
    **EDITING,
    **FINETUNING,
    **PEFT,
    **PHEMA,
    **SCHEDULERS,
    "edm_forward": edm_forward,
    "edm_grad": edm_grad,
    "edm_loss": edm_loss,
    "edm_raw": edm_raw,
    "edm_round_sigma": edm_round_sigma,
    "edm_sampler": edm_sampler,
    "edm_sigma_sweep": edm_sigma_sweep,
    "ds_sampler": ds_sampler,
    "gits": gits,
    "kd_discrete": kd_discrete,
    "kd_sampler": solver_of_k_diffusion,
    **guidance_checks(generator_of),
    "kd_schedule": kd_schedule,
    "restart_sampler": restarts,
    "source BigGAN-PyTorch": gan_training,
    "source Vendi-Score": metrics,
    "source pixel-cnn-pp": pixelcnnpp,
    "source pytorch-vqvae GatedPixelCNN": gated_pixelcnn,
    "source torch-fidelity": metrics,
}
