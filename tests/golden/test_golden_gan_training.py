"""The check of GAN training where gradients are accumulated, which no shipped case does.

Such cases are made here, by the official training function written down in plain torch; with the
settings of the shipped case it gives what the official code gave.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import HERE, Case, MismatchError, compare, read_case
from golden_gan_training import networks_of, settled_gradients
from golden_kinds import check
from safetensors.torch import save_file
from torch import Tensor, nn

SHIPPED = HERE / "data" / "biggan_train_step"
LARGEST = 400
"""Gradients of parameters with more entries are not stored."""


class Plain:
    """``train_fns.GAN_training_function``: with hinge loss, and both kinds of images at once.

    Attributes:
        results: gradients and states by the names of the case.
        metrics: of each iteration.
        steps: the optimizers' in their order.
    """

    def __init__(self, case: Case, inputs: Mapping[str, Tensor]) -> None:
        self.settings, self.inputs = case.meta["config"], inputs
        G, D = (network.train() for network in networks_of(case))
        self.networks: dict[str, Any] = {"G": G, "D": D}
        self.average = copy.deepcopy(G).state_dict()
        self.optimizers = {"G": _adam(G, case.meta["generator"], "G")}
        self.optimizers["D"] = _adam(D, case.meta["discriminator"], "D")
        self.draws = zip(inputs["z"], inputs["y"], strict=True)
        self.results: dict[str, Tensor] = {}
        self.metrics: list[dict[str, float]] = []
        self.steps: list[str] = []

    def run(self) -> None:
        for index in range(self.settings["iterations"]):
            self.metrics.append(self._iteration(index))
            self._update_average(index + 1)
        assert next(self.draws, None) is None
        states = {name: network.state_dict() for name, network in self.networks.items()}
        for name, state in {**states, "G_ema": self.average}.items():
            self.results |= {f"after.{name}.{key}": value.clone() for key, value in state.items()}

    def _iteration(self, index: int) -> dict[str, float]:
        batch = self.settings["batch_size"]
        rows = (self.inputs[f"{name}.{index}"].split(batch) for name in ("x", "labels"))
        chunks = zip(*rows, strict=True)
        told: dict[str, float] = {}
        for _ in range(self.settings["num_D_steps"]):
            self.optimizers["D"].zero_grad()
            for _ in range(self.settings["num_D_accumulations"]):
                told |= self._accumulate_discriminator(*next(chunks))
            self._step("D")
        assert next(chunks, None) is None
        self.optimizers["G"].zero_grad()
        for _ in range(self.settings["num_G_accumulations"]):
            told |= self._accumulate_generator()
        self._add_orthogonal()
        self._step("G")
        return told

    def _accumulate_discriminator(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        G, D = self.networks["G"], self.networks["D"]
        z, y = (rows[: len(x)] for rows in next(self.draws))
        with torch.no_grad():
            made = G(z, G.embed_labels(y))
        of_made, of_real = D(torch.cat([made, x]), torch.cat([y, labels])).chunk(2)
        real, fake = (1 - of_real).relu().mean(), (1 + of_made).relu().mean()
        ((real + fake) / self.settings["num_D_accumulations"]).backward()
        return {"D_loss_real": real.item(), "D_loss_fake": fake.item()}

    def _accumulate_generator(self) -> dict[str, float]:
        G, D = self.networks["G"], self.networks["D"]
        z, y = next(self.draws)
        loss = -D(G(z, G.embed_labels(y)), y).mean() / self.settings["num_G_accumulations"]
        loss.backward()
        return {"G_loss": loss.item()}

    @torch.no_grad()
    def _add_orthogonal(self) -> None:
        for name, parameter in self.networks["G"].named_parameters():
            if parameter.ndim >= 2 and not name.startswith("shared."):
                assert parameter.grad is not None
                w = parameter.flatten(1)
                off_diagonal = (w @ w.T) * (1 - torch.eye(len(w)))
                extra = 2 * self.settings["G_ortho"] * off_diagonal @ w
                parameter.grad += extra.reshape(parameter.shape)

    def _step(self, name: str) -> None:
        for key, parameter in self.networks[name].named_parameters():
            if parameter.numel() <= LARGEST:
                self.results[f"grad.{len(self.steps)}.{name}.{key}"] = parameter.grad.clone()
        self.optimizers[name].step()
        self.steps.append(name)

    @torch.no_grad()
    def _update_average(self, iteration: int) -> None:
        decay = self.settings["ema_decay"] if iteration >= self.settings["ema_start"] else 0.0
        for name, value in self.networks["G"].state_dict().items():
            self.average[name].mul_(decay).add_(value * (1 - decay))


def _adam(network: nn.Module, settings: Mapping[str, Any], letter: str) -> torch.optim.Adam:
    betas = (settings[f"{letter}_B1"], settings[f"{letter}_B2"])
    lr, eps = settings[f"{letter}_lr"], settings["adam_eps"]
    return torch.optim.Adam(network.parameters(), lr, betas, eps)


def test_plain_training_is_the_official_one() -> None:
    case = read_case(SHIPPED)
    plain = Plain(case, case.tensors)
    plain.run()
    assert plain.steps == case.meta["values"]["optimiser_steps"]
    for ours, theirs in zip(
        plain.metrics, case.meta["values"]["metrics_per_iteration"], strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for step in range(len(plain.steps)):
        of_step = {k: v for k, v in plain.results.items() if k.startswith(f"grad.{step}.")}
        plain.results |= settled_gradients(of_step, case.tensors)
    for name, value in plain.results.items():
        compare(name, value, case.tensors[name])


def _inputs(settings: Mapping[str, Any], case: Case) -> Iterator[tuple[str, Tensor]]:
    steps, accumulations = settings["num_D_steps"], settings["num_D_accumulations"]
    draws = settings["iterations"] * (steps * accumulations + settings["num_G_accumulations"])
    yield "z", torch.randn(draws, *case.tensors["z"].shape[1:])
    yield "y", torch.randint(case.meta["generator"]["n_classes"], (draws, settings["G_batch_size"]))
    images = settings["batch_size"] * steps * accumulations
    for index in range(settings["iterations"]):
        yield f"x.{index}", torch.randn(images, *case.tensors["x.0"].shape[1:]).clamp(-1, 1)
        yield f"labels.{index}", torch.randint(case.meta["generator"]["n_classes"], (images,))


def _made(
    folder: Path, discriminator: int, generator: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case like the shipped one, with other accumulations."""
    case = read_case(SHIPPED)
    numbers = {"num_D_accumulations": discriminator, "num_G_accumulations": generator}
    meta = {**case.meta, "config": {**case.meta["config"], **numbers}}
    inputs = dict(_inputs(meta["config"], case))
    plain = Plain(Case(SHIPPED, meta), inputs)
    plain.run()
    meta["values"] = {"metrics_per_iteration": plain.metrics, "optimiser_steps": plain.steps}
    (folder / "weights.safetensors").symlink_to(SHIPPED / "weights.safetensors")
    return meta, inputs | plain.results


def _check(folder: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    (folder / "meta.json").write_text(json.dumps(meta))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "io.safetensors")
    [run] = read_case(folder).runs()
    check(run)


@pytest.mark.parametrize(("discriminator", "generator"), [(2, 2), (1, 3), (3, 2)])
def test_accumulated_gradients_are_known(
    tmp_path: Path, discriminator: int, generator: int
) -> None:
    _check(tmp_path, *_made(tmp_path, discriminator, generator))


def test_loss_of_the_generator_is_divided(tmp_path: Path) -> None:
    meta, tensors = _made(tmp_path, 2, 2)
    meta["values"]["metrics_per_iteration"][0]["G_loss"] *= 2
    with pytest.raises(MismatchError, match="G_loss"):
        _check(tmp_path, meta, tensors)


@pytest.mark.parametrize("name", ["x.1", "z"])
def test_order_of_accumulations_counts(tmp_path: Path, name: str) -> None:
    """Accumulations of one update belong together: the next update has the chunks behind them."""
    meta, tensors = _made(tmp_path, 2, 2)
    size = meta["config"]["batch_size"] if name == "x.1" else 1
    first, second, third, *rest = tensors[name].split(size)
    tensors[name] = torch.cat([first, third, second, *rest])
    with pytest.raises(MismatchError, match=r"loss|grad"):
        _check(tmp_path, meta, tensors)
