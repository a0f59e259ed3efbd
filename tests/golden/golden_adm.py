"""guided-diffusion: networks, classifiers, schedules, sampling and losses."""

from functools import lru_cache
from typing import Any

import torch
from golden_cases import Case, MismatchError, Run
from golden_noise import RecordedNoise
from golden_told import Told
from torch import Tensor

import genlab
from genlab.diffusion.condition import Condition
from genlab.diffusion.discrete import Discrete, chain_over, respaced_timesteps
from genlab.diffusion.losses import LossDraws
from genlab.diffusion.tables import gather
from genlab.diffusion.variational import (
    DDPMLoss,
    model_chain,
    posterior_mean,
    reverse_step,
    variational_bound,
)
from genlab.generators import DiffusionGenerator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks.layers.noise_embeddings import time_features
from genlab.samplers.base import Grid
from genlab.samplers.editing.inversion import ddim_latents
from genlab.samplers.guidance.classifier import class_gradient
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler

READERS = {
    "UNetModel": "guided-diffusion",
    "SuperResModel": "guided-diffusion",
    "EncoderUNetModel": "guided-diffusion-classifier",
}


@lru_cache(maxsize=8)
def _converted(case: Case, role: str, *diffusion: tuple[str, Any]) -> Any:
    made = case.meta["constructors"][role]
    weights = case.folder / f"{case.meta['weights'][role]}.safetensors"
    config = {**made["kwargs"], "cls": made["cls"], **dict(diffusion)}
    return genlab.convert(weights, format=READERS[made["cls"]], config=config)


def _generator(run: Run) -> DiffusionGenerator:
    diffusion = run.params("diffusion").get("diffusion", {})
    generator = _converted(run.case, "net", *diffusion.items())
    assert isinstance(generator, DiffusionGenerator)
    return generator


def _classifier(run: Run) -> NoisyClassifier:
    diffusion = run.spec["params"].get("diffusion", {})
    role = "classifier" if "classifier" in run.case.meta["constructors"] else "net"
    classifier = _converted(run.case, role, *diffusion.items())
    assert isinstance(classifier, NoisyClassifier)
    return classifier


def _network_output(run: Run, x: Tensor) -> Tensor:
    network: Any = _generator(run).network
    labels = network.embed_labels(run.optional("y")) if network.label_dim else None
    beside = {"low_res": run.input("low_res")} if run.has("low_res") else {}
    out: Tensor = network(x, run.input("timesteps").float(), labels, **beside)
    return out


def forward(run: Run) -> None:
    with torch.no_grad():
        run.expect_all({"out": _network_output(run, run.input("x"))})


def grad(run: Run) -> None:
    generator = _generator(run)
    generator.network.zero_grad()
    x = run.input("x").clone().requires_grad_()
    (_network_output(run, x) * run.input("cotangent")).sum().backward()
    assert x.grad is not None
    run.expect_all({"grad_x": x.grad, **_gradients(run, generator)})


def _gradients(run: Run, generator: DiffusionGenerator) -> dict[str, Tensor]:
    parameters = dict(generator.network.named_parameters())
    found = {}
    for name in run.params("params").get("params", []):
        gradient = parameters[name].grad
        assert gradient is not None
        found[f"grad[{name}]"] = gradient
    return found


def time_embedding(run: Run) -> None:
    t = run.input("timesteps")
    dims = run.params("dims")["dims"]
    run.expect_all({f"dim{dim}": time_features(t, dim) for dim in dims})


def classify(run: Run) -> None:
    """The official input is scaled and knows timesteps; ours is unscaled and knows sigmas."""
    classifier = _classifier(run)
    model = classifier.preconditioning
    assert isinstance(model, Discrete)
    t, y = run.input("timesteps"), run.input("y")
    with torch.no_grad():
        logits = classifier.network(run.input("x"), t.float())
    sigma = model.levels[t.to(torch.int64)]
    scale = (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    if not torch.equal(t, t.round()):
        raise MismatchError(f"{run.id}: timesteps are not whole")
    gradient = class_gradient(classifier, run.input("x") * scale, sigma, y) * scale
    run.expect_all(
        {"logits": logits, "log_probs": logits.log_softmax(1), "grad_log_prob": gradient}
    )


def schedule(run: Run) -> None:
    params = run.params("diffusion", "arrays")
    steps = params["diffusion"]["timestep_respacing"]
    model = _preconditioning(params["diffusion"])
    chain = chain_over(model.levels, steps)
    results = {name: getattr(chain, name) for name in params["arrays"]}
    kept = torch.tensor(respaced_timesteps(model.T, steps))
    run.expect_all({**results, "timestep_map": kept})


def _preconditioning(diffusion: dict[str, Any]) -> Discrete:
    return Discrete(schedule=diffusion["noise_schedule"], T=diffusion["steps"])


def sample(run: Run) -> None:
    generator = _generator(run)
    params = run.params("method", "clip_denoised", "eta", "classifier_scale")
    run.params("class_cond", "trace")  # these say only what is recorded and what y is for
    diffusion = run.spec["params"]["diffusion"]
    solver: dict[str, Any] = {"name": params["method"], "clip": params["clip_denoised"]}
    if params["method"] == "ddim":
        solver["eta"] = params["eta"]
    guidance = []
    if "classifier_scale" in params:
        classifier = _classifier(run)
        scale = params["classifier_scale"]
        guidance = [{"name": "classifier", "classifier": classifier, "scale": scale}]
    spaced = {"name": "respaced", "steps": diffusion["timestep_respacing"]}
    sampler = Sampler.from_config({"solver": solver, "schedule": spaced, "guidance": guidance})
    told = Told(generator.denoiser, generator.network)
    noise = RecordedNoise(run)
    latents = run.input("x_T")
    with torch.no_grad():
        steps = list(
            sample_steps(
                sampler,
                told,
                noise=noise,
                condition=Condition(labels=run.input("y")),
                image_shape=latents.shape[1:],
                device="cpu",
                latents=latents,
            )
        )
    told.notes.remove()
    noise.expect_end()
    scaled = [step.x * (1 + step.sigma_next**2) ** -0.5 for step in steps]
    timesteps = told.times(len(steps))
    run.expect_all(
        {
            "sample": scaled[-1],
            "model_timesteps": timesteps.to(run.reference("model_timesteps").dtype),
            "x_trajectory": torch.stack(scaled),
            "pred_xstart": torch.stack([step.x0 for step in steps]),
        }
    )


def ddim_reverse(run: Run) -> None:
    generator = _generator(run)
    steps = run.spec["params"]["diffusion"]["timestep_respacing"]
    spaced = Sampler.from_config({"schedule": {"name": "respaced", "steps": steps}}).schedule
    with torch.no_grad():
        latents = ddim_latents(
            generator.denoiser,
            run.input("x_0").double(),
            Grid.of(spaced, generator.preconditioning).sigmas,
            Condition(labels=run.input("y")),
            clip=run.params("clip_denoised")["clip_denoised"],
        )
    run.expect_all({"x_T": latents})


def _loss_kind(diffusion: dict[str, Any]) -> str:
    if diffusion.get("use_kl"):
        return "rescaled_kl"
    return "rescaled_mse" if diffusion["rescale_learned_sigmas"] else "mse"


def losses(run: Run) -> None:
    generator = _generator(run)
    diffusion = run.spec["params"]["diffusion"]
    steps = diffusion["timestep_respacing"]
    loss = DDPMLoss(kind=_loss_kind(diffusion), steps=steps)
    chain = model_chain(generator.denoiser, steps)
    images, noise = run.input("x_start"), run.input("noise")
    level = (run.input("t") + 0.5) / len(chain)
    generator.network.zero_grad()
    draws = LossDraws(level=level, noise=noise)
    terms = loss(generator.denoiser, images, Condition(labels=run.input("y")), draws)
    each = terms.loss.mean((1, 2, 3))
    each.mean().backward()
    sigma = terms.sigma.reshape(-1, 1, 1, 1)
    run.expect_all(
        {
            "loss": each,
            **terms.parts,
            "x_t": (images + sigma * noise) * (1 + sigma**2) ** -0.5,
            **_gradients(run, generator),
        }
    )


def p_mean_variance(run: Run) -> None:
    generator = _generator(run)
    chain = model_chain(generator.denoiser)
    t, x0 = run.input("t"), run.input("x_start")
    x = run.input("x_t") * gather((1 + chain.sigmas**2).sqrt(), t, x0)
    clip = run.params("clip_denoised")["clip_denoised"]
    with torch.no_grad():
        labels = Condition(labels=run.input("y"))
        ours = reverse_step(generator.denoiser, chain, t, x, labels, clip=clip)
    whole = torch.ones_like(x)
    run.expect_all(
        {
            "mean": ours.mean,
            "log_variance": ours.log_variance * whole,
            "variance": ours.log_variance.exp() * whole,
            "pred_xstart": ours.x0,
            "posterior_mean": posterior_mean(chain, t, x, x0),
            "posterior_variance": gather(chain.posterior_variance, t, x) * whole,
            "posterior_log_variance": chain.log_variance(t, "fixed_small", whole) * whole,
        }
    )


def bits_per_dimension(run: Run) -> None:
    generator = _generator(run)
    noise = RecordedNoise(run)
    terms = variational_bound(
        generator.denoiser,
        run.input("x_start"),
        Condition(labels=run.input("y")),
        noise,
        steps=run.spec["params"]["diffusion"]["timestep_respacing"],
        clip=run.params("clip_denoised")["clip_denoised"],
    )
    noise.expect_end()
    run.expect_all(
        {
            "total_bpd": terms.total,
            "prior_bpd": terms.prior,
            "vb": terms.vb,
            "xstart_mse": terms.x0_mse,
            "mse": terms.mse,
        }
    )


CHECKS = {
    "adm_bpd": bits_per_dimension,
    "adm_losses": losses,
    "adm_p_mean_variance": p_mean_variance,
    "adm_classifier": classify,
    "adm_ddim_reverse": ddim_reverse,
    "adm_forward": forward,
    "adm_grad": grad,
    "adm_sample": sample,
    "adm_schedule": schedule,
    "adm_time_embedding": time_embedding,
}
