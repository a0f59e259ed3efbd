"""DiT and SiT: the network, its guidance, and both families' samplers and losses."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from golden_cases import Case, MismatchError, Run
from golden_noise import RecordedNoise
from golden_told import Told
from torch import Tensor
from watching import Watching

import genlab
from genlab.compute import choose
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import Denoiser, Prediction
from genlab.diffusion.discrete import Discrete, respaced_timesteps
from genlab.diffusion.flow import PATHS, Flow, FlowLoss, PathPoint
from genlab.diffusion.losses import LossDraws
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import Coefficients, Preconditioning
from genlab.diffusion.variational import DDPMLoss, model_chain
from genlab.generators import DiffusionGenerator
from genlab.networks.dit import TIME_FEATURES, sin_cos_positions
from genlab.networks.layers.noise_embeddings import time_features
from genlab.samplers.base import Grid, SolverStep
from genlab.samplers.editing.inversion import invert
from genlab.samplers.guidance.classifier_free import ClassifierFree
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.solvers.flow import FlowODE, velocity_of
from genlab.samplers.solvers.flow_sde import DIFFUSIONS

GUIDED = 3
"""How many channels the official code guides."""


@lru_cache(maxsize=16)
def converted(case: Case, *more: tuple[str, Any]) -> DiffusionGenerator:
    made = case.meta["constructors"]["net"]
    weights = case.folder / f"{case.meta['weights']['net']}.safetensors"
    generator = genlab.convert(
        weights, format=made["cls"].lower(), config={**made["kwargs"], **dict(more)}
    )
    assert isinstance(generator, DiffusionGenerator)
    choose(torch.device("cpu")).prepare(generator.network)
    return generator


def _labels(run: Run, name: str = "y") -> Tensor:
    """Classes; the official null class is the one behind the last."""
    y = run.input(name)
    num_classes = run.case.meta["constructors"]["net"]["kwargs"]["num_classes"]
    return torch.where(y == num_classes, NULL_CLASS, y)


def _kept(run: Run, output: Tensor) -> Tensor:
    """What the official network returns: SiT's drops the second half."""
    made = run.case.meta["constructors"]["net"]
    return output[:, : made["kwargs"]["in_channels"]] if made["cls"] == "SiT" else output


def forward(run: Run) -> None:
    network: Any = converted(run.case).network
    with torch.no_grad():
        out = network(run.input("x"), run.input("t").float(), network.embed_labels(_labels(run)))
    run.expect_all({"out": _kept(run, out)})


def grad(run: Run) -> None:
    network: Any = converted(run.case).network
    network.zero_grad()
    x = run.input("x").clone().requires_grad_()
    out = network(x, run.input("t").float(), network.embed_labels(_labels(run)))
    (_kept(run, out) * run.input("cotangent")).sum().backward()
    assert x.grad is not None
    run.expect_all({"grad_x": x.grad, **_gradients(run, network)})


def _gradients(run: Run, network: Any) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    names = run.params("params").get("params", [])
    return {f"grad[{name}]": parameters[name].grad for name in names}


def parts(run: Run) -> None:
    network: Any = converted(run.case).network
    t, y = run.input("t").float(), _labels(run)
    with torch.no_grad():
        dropped = torch.empty(0)  # nothing can be dropped without a null class
        if run.has("force_drop"):
            forced = run.input("force_drop") == 1
            dropped = network.embed_labels(torch.where(forced, NULL_CLASS, y))
        run.expect_all(
            {
                "t_frequency": _frequency_features(t, run.reference("t_frequency")),
                "t_embedding": network.t_embedder(t, torch.float32),
                "y_embedding": network.embed_labels(y),
                "y_forced_drop": dropped,
                "patches": network.x_embedder(run.input("x")),
            }
        )


def _frequency_features(t: Tensor, reference: Tensor) -> Tensor:
    """Ours, each frequency moved by a unit in its last place where the reference has it so.

    Frequencies are exponentials in float32, whose last bit MKL rounds differently on Intel and on
    other processors (with MKL_CBWR=COMPATIBLE both give the reference to the bit). At t = 1000 that
    bit is 3e-5 of a phase, more than the tolerance, and the kernel noise in the data knows one
    processor only.
    """
    half = TIME_FEATURES // 2
    index = torch.arange(half, dtype=torch.float32)
    frequencies = (-math.log(10000) * index / half).exp()

    def features(f: Tensor) -> Tensor:
        phase = t[:, None] * f
        return torch.cat([phase.cos(), phase.sin()], dim=1)

    ours = time_features(t, TIME_FEATURES)
    assert torch.equal(ours, features(frequencies))
    for target in (0.0, 2.0):  # one down, one up
        moved = features(torch.nextafter(frequencies, torch.tensor(target)))
        nearer = (moved - reference).abs().reshape(len(t), 2, half).sum((0, 1)) < (
            ours - reference
        ).abs().reshape(len(t), 2, half).sum((0, 1))
        ours = torch.where(nearer.repeat(2), moved, ours)
    return ours


def pos_embed(run: Run) -> None:
    sizes = run.params("sizes")["sizes"]
    run.expect_all({f"d{dim}_g{g}": sin_cos_positions(dim, g, g) for dim, g in sizes})


@dataclass(frozen=True)
class Bare(Preconditioning):
    """No scalings at all: the estimate is the network's output, the noise level its timestep."""

    name: ClassVar[str] = "bare"
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    variance: str = "learned"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(c_skip=0 * one, c_out=one, c_in=one, c_noise=sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


def forward_cfg(run: Run) -> None:
    """The official function guides raw outputs, and evaluates both halves at the first's images."""
    network: Any = converted(run.case).network
    classes = network.label_dim
    bare = PreconditionedDenoiser(network, Bare(), num_classes=classes, has_null_class=True)
    scale = run.params("cfg_scale")["cfg_scale"]
    halves = OfficialHalves(bare, Bare(), scale)
    with torch.no_grad():
        told = Condition(labels=_labels(run))
        said = halves.predict(run.input("x"), run.input("t").float(), told)
    out = said.x0 if said.variance is None else torch.cat([said.x0, said.variance], dim=1)
    run.expect_all({"out": _kept(run, out)})


class OfficialHalves(Watching):
    """The official doubled batch, of which the scripts keep the first half in the end.

    Both halves are evaluated at the images of the first and get its guided channels; each keeps its
    own other channels. The first half is what `ClassifierFree` makes of it. The second half's
    estimates are shifted, because they are estimates for other images than its own.
    """

    def __init__(self, inner: Denoiser, preconditioning: Preconditioning, scale: float) -> None:
        super().__init__(inner)
        self.preconditioning = preconditioning
        self.guided = ClassifierFree(scale=scale, channels=GUIDED)(inner)

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return self.predict(x, sigma, condition).x0

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        assert condition.labels is not None
        images, others = x.chunk(2)
        labels, null = condition.labels.chunk(2)
        assert bool((null == NULL_CLASS).all())
        level = sigma if sigma.ndim == 0 else sigma.chunk(2)[0]
        first = self.guided.predict(images, level, Condition(labels=labels))
        second = self.inner.predict(images, level, Condition(labels=null))
        x0 = torch.cat([first.x0[:, :GUIDED], second.x0[:, GUIDED:]], dim=1)
        c_skip = self.preconditioning.coefficients(level).c_skip.reshape(-1, 1, 1, 1)
        x0 = torch.cat([first.x0, x0 + c_skip * (others - images)])
        if first.variance is None or second.variance is None:
            return Prediction(x0=x0)
        return Prediction(x0=x0, variance=torch.cat([first.variance, second.variance]))


def _denoiser(run: Run, generator: DiffusionGenerator, told: Told | None = None) -> Denoiser:
    inner = told or generator.denoiser
    scale = run.params("cfg_scale").get("cfg_scale")
    if scale is None:
        return inner
    return OfficialHalves(inner, generator.preconditioning, scale)


def _sample(run: Run, denoiser: Denoiser, config: dict[str, Any], z: Tensor) -> list[SolverStep]:
    noise = RecordedNoise(run)
    with torch.no_grad():
        steps = list(
            sample_steps(
                Sampler.from_config(config),
                denoiser,
                noise=noise,
                condition=Condition(labels=_labels(run)),
                image_shape=z.shape[1:],
                device="cpu",
                latents=z,
            )
        )
    noise.expect_end()
    return steps


def sample(run: Run) -> None:
    """DDPM and DDIM as create_diffusion makes them."""
    diffusion = run.params("diffusion")["diffusion"]
    params = run.params("method", "clip_denoised", "eta")
    run.params("trace")  # says only what is recorded
    generator = converted(run.case, *chain_options(diffusion).items())
    model = generator.preconditioning
    assert isinstance(model, Discrete)
    assert (model.variance == "learned_range") == diffusion["learn_sigma"]
    solver = {"name": params["method"], "clip": params.get("clip_denoised", False)}
    if "eta" in params:
        solver["eta"] = params["eta"]
    spaced = diffusion["timestep_respacing"]
    config = {"solver": solver, "schedule": {"name": "respaced", "steps": spaced}}
    told = Told(generator.denoiser, generator.network)
    z = run.input("z")
    steps = _sample(run, _denoiser(run, generator, told), config, z)
    told.notes.remove()
    scaled = [step.x * (1 + step.sigma_next**2) ** -0.5 for step in steps]
    timesteps = told.shared_times(len(steps))
    run.expect_all(
        {
            "sample": scaled[-1],
            "model_timesteps": like(timesteps, run.reference("model_timesteps")),
            "timestep_map": torch.tensor(respaced_timesteps(model.T, spaced)),
            "x_trajectory": torch.stack(scaled),
            "pred_xstart": torch.stack([step.x0 for step in steps]),
        }
    )


def losses(run: Run) -> None:
    """create_diffusion's training losses, at the timesteps that the run names."""
    diffusion = run.params("diffusion")["diffusion"]
    generator = converted(run.case, *chain_options(diffusion).items())
    network: Any = generator.network
    kind = "rescaled_mse" if diffusion.get("rescale_learned_sigmas") else "mse"
    loss = DDPMLoss(kind=kind, steps=diffusion["timestep_respacing"])
    steps = len(model_chain(generator.denoiser, loss.steps))
    level = (run.input("t") + 0.5) / steps
    network.zero_grad()
    terms = loss(
        generator.denoiser,
        run.input("x_start"),
        Condition(labels=_labels(run)),
        LossDraws(level=level, noise=run.input("noise")),
    )
    each = terms.loss.mean((1, 2, 3))
    each.mean().backward()
    run.expect_all({"loss": each, **terms.parts, **_gradients(run, network)})


def chain_options(diffusion: dict[str, Any]) -> dict[str, Any]:
    known = {"noise_schedule", "learn_sigma", "timestep_respacing", "rescale_learned_sigmas"}
    if unknown := set(diffusion) - known:
        raise MismatchError(f"this check does not know the arguments {sorted(unknown)}")
    return {key: diffusion[key] for key in ("noise_schedule",) if key in diffusion}


def like(values: Tensor, reference: Tensor) -> Tensor:
    """One number a step in the shape of the reference, which may repeat it for each sample."""
    column = values.reshape(-1, *[1] * (reference.ndim - 1))
    return column.to(reference.dtype).expand(reference.shape)


def _flow(run: Run) -> tuple[DiffusionGenerator, dict[str, Any]]:
    transport = dict(run.params("transport")["transport"])
    weighting = transport.pop("loss_weight", None)
    generator = converted(run.case, *transport.items())
    return generator, {
        "path": transport["path_type"].lower(),
        "prediction": transport["prediction"],
        "weighting": weighting or "none",
    }


def flow_path(run: Run) -> None:
    """The official functions of the path, each out of what ours are made of."""
    _, options = _flow(run)
    path = PATHS[options["path"]]
    t, x0, x1 = (run.input(name) for name in ("t", "x0", "x1"))
    points = [path.at(moment) for moment in t]
    sigma = path.sigma(t)
    c = Flow(path=options["path"]).coefficients(sigma)
    x_t = _column(c.c_in) * (x1 + _column(sigma) * x0)
    velocity = _velocities(x_t, x1, points)

    # Where the estimate is 0, x_t is all noise: its score, the velocity, and the path's own drift.
    whole = path.at(t)
    own = _column(DIFFUSIONS["sbdm"](whole, 1.0))
    idle = _velocities(x0, torch.zeros_like(x0), points)
    drift_mean = own * -x0 / _column(whole.std) ** 2 - idle

    estimate = _column(c.c_skip) * x0 / _column(c.c_in) + _column(c.c_out) * x1
    score = (_column(whole.alpha) * estimate - x0) / _column(whole.std) ** 2
    forms = ("constant", "SBDM", "sigma", "linear", "decreasing")
    strengths = {f"diffusion_{f}": _column(DIFFUSIONS[f.lower()](whole, 0.8)) for f in forms}
    strengths["diffusion_constant"] = strengths["diffusion_constant"][0, 0, 0, 0]
    run.expect_all(
        {
            "xt": x_t,
            "ut": velocity,
            "drift_mean": drift_mean,
            "drift_var": own,
            "score_from_velocity": score,
            **strengths,
        }
    )


def _velocities(x_t: Tensor, x1: Tensor, points: list[PathPoint]) -> Tensor:
    rows = zip(x_t.split(1), x1.split(1), points, strict=True)
    return torch.cat([velocity_of(*row) for row in rows])


def flow_losses(run: Run) -> None:
    generator, options = _flow(run)
    network: Any = generator.network
    noise, level = run.draws()
    said: list[Tensor] = []
    hook = network.register_forward_hook(lambda _, args, out: said.append(out))
    network.zero_grad()
    terms = FlowLoss(**options)(
        generator.denoiser,
        run.input("x1"),
        Condition(labels=_labels(run)),
        LossDraws(level=level, noise=noise),
    )
    hook.remove()
    loss = terms.loss.mean((1, 2, 3))
    loss.mean().backward()
    run.expect_all({"loss": loss, "pred": _kept(run, said[0]), **_gradients(run, network)})


def flow_ode(run: Run) -> None:
    generator, options = _flow(run)
    ode = run.params("ode")["ode"]
    path, intervals = PATHS[options["path"]], ode["num_steps"] - 1
    z = run.input("z")
    noted = Levels(_denoiser(run, generator))
    method = {"heun2": "heun"}.get(ode["sampling_method"], ode["sampling_method"])
    parts = 1
    if method == "dopri5":  # adaptive, and only told to come near the solution: so do many steps
        method, parts = "rk4", 20
    solver = {"name": "flow", "path": options["path"], "method": method, "full_last_step": True}
    times = {"name": "flow", "path": options["path"], "num_steps": parts * intervals}
    if ode.get("reverse", False):
        schedule = Sampler.from_config({"schedule": times}).schedule
        sigmas = Grid.of(schedule, noted.noise_levels).sigmas.flip(0)
        with torch.no_grad():
            flow = FlowODE(path=options["path"], method=method, full_last_step=True)
            condition = Condition(labels=_labels(run))
            steps = list(invert(flow, noted, z.double(), sigmas, condition))
    else:
        steps = _sample(run, noted, {"solver": solver, "schedule": times}, z)
    results = {"trajectory": torch.stack([z, *_states(options["path"], steps)[parts - 1 :: parts]])}
    if "model_times" in run.spec["outputs"]:
        told = path.t(torch.stack(noted.sigmas))
        results["model_times"] = like(told, run.reference("model_times"))
    run.expect_all(results)


def flow_sde(run: Run) -> None:
    generator, options = _flow(run)
    sde = run.params("sde")["sde"]
    solver = {
        "name": "flow-sde",
        "path": options["path"],
        "method": sde["sampling_method"].lower(),
        "diffusion": sde["diffusion_form"],
        "norm": sde.get("diffusion_norm", 1.0),
        "last": sde["last_step"].lower(),
    }
    times = {"name": "flow", "path": options["path"], "num_steps": sde["num_steps"]}
    config = {"solver": solver, "schedule": {**times, "last_step": sde["last_step_size"]}}
    steps = _sample(run, _denoiser(run, generator), config, run.input("z"))
    run.expect_all({"trajectory": torch.stack(_states(options["path"], steps))})


class Levels(Watching):
    """Notes the noise levels that a solver asks at."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.sigmas: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.sigmas.append(sigma)
        return self.inner(x, sigma, condition)


def _states(path: str, steps: list[SolverStep]) -> list[Tensor]:
    """The states in the path's own frame."""
    ends = [torch.tensor(step.sigma_next, dtype=torch.float64) for step in steps]
    return [PATHS[path].of(sigma).alpha * step.x for sigma, step in zip(ends, steps, strict=True)]


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


CHECKS = {
    "dit_forward": forward,
    "dit_forward_cfg": forward_cfg,
    "dit_grad": grad,
    "dit_losses": losses,
    "dit_parts": parts,
    "dit_pos_embed": pos_embed,
    "dit_sample": sample,
    "sit_losses": flow_losses,
    "sit_ode": flow_ode,
    "sit_path": flow_path,
    "sit_sde": flow_sde,
}
