"""The state that a step changes: networks, their optimizers, the averages of the main one."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab import compute
from genlab.errors import ConfigError, TrainingError, nearest
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata
from genlab.training.loop.ema import HalfLifeAverage, PowerAverage, WeightAverage, averaged_tensors
from genlab.training.loop.seeds import derive
from genlab.training.loop.state import Progress, State
from genlab.training.loop.trained import changing_tensors
from genlab.training.objectives.base import Objective


class Models:
    """The networks in training and what follows them.

    Of a network in training whose parameters are frozen in part, optimizer, averages and states
    hold only what trains: the rest is what the objective builds it with.

    Args:
        config: of the run.
        objective: which networks there are.
        data: what their shapes follow from.
        accelerator: where they are, and who trains with us.

    Attributes:
        networks: name -> network, those in training as accelerate wrapped them.
        optimizers: name -> optimizer of a network in training, wrapped too.
        averages: of the main network; the first is that by half-life.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        data: DataMetadata,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.objective, self.accelerator = config, objective, accelerator
        torch.manual_seed(derive(config.seed, "weights"))
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Any] = {}
        for name, network in objective.build(config.network, data).items():
            # On its device before accelerate wraps it: optimizers hold the very parameters.
            self.networks[name] = network.to(accelerator.device).train()
            if name in objective.phases:
                self._prepare(name, network)
        self._check_names()
        parameters = averaged_tensors(self.main)
        ema = config.ema
        self.averages: list[WeightAverage] = [
            HalfLifeAverage(
                parameters, ema.halflife_kimg * 1000, ema.rampup_ratio, ema.start_kimg * 1000
            ),
            *(PowerAverage(parameters, sigma_rel) for sigma_rel in ema.sigma_rels),
        ]

    def _prepare(self, name: str, network: nn.Module) -> None:
        """Make a network ready to be trained."""
        compute.choose(self.accelerator.device).prepare_training(network)
        if self.config.gradient_checkpointing:
            _enable_gradient_checkpointing(network)
        self.networks[name], self.optimizers[name] = self.accelerator.prepare(
            network, self._optimizer(name, network)
        )

    def _check_names(self) -> None:
        for name in self.config.optimizer.networks:
            if name not in self.optimizers:
                raise ConfigError(
                    f"optimizer.networks has settings for {name!r}, which this objective does not "
                    f"train; {nearest(name, self.optimizers)}"
                )

    @property
    def main(self) -> nn.Module:
        """The network that is averaged, unwrapped."""
        return self.plain(self.objective.main)

    def plain(self, name: str) -> nn.Module:
        """A network as its objective built it."""
        network: nn.Module = self.accelerator.unwrap_model(self.networks[name])
        return network

    @property
    def unwrapped(self) -> dict[str, nn.Module]:
        """All networks as their objective built them."""
        return {name: self.plain(name) for name in self.networks}

    def _optimizer(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        options = self.config.optimizer.of(name)
        return torch.optim.AdamW(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=self.accelerator.device.type in {"cpu", "cuda"},
        )

    def initialise(self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]) -> None:
        """Let the objective fit the first weights to the first images, see its `initialise`."""
        self.objective.initialise(self.unwrapped, images, labels)
        for average in self.averages:
            average.load_state_dict(averaged_tensors(self.main))

    def update_averages(self, images: int) -> None:
        """Let the averages follow a step.

        Args:
            images: that the run had seen before it.
        """
        parameters = averaged_tensors(self.main).values()
        for average in self.averages:
            average.update(parameters, images, self.config.batch_size)

    def state(self, progress: Progress) -> State:
        """The whole state, to be saved; it shares its memory with the models."""
        scaler = self.accelerator.scaler
        return State(
            progress=progress,
            networks={name: self._saved(name) for name in self.networks},
            averages={average.name: average.state_dict() for average in self.averages},
            optimizers={name: o.state_dict() for name, o in self.optimizers.items()},
            scaler=None if scaler is None else scaler.state_dict(),
        )

    def _saved(self, name: str) -> dict[str, Tensor]:
        """The tensors of a network in a state; of networks that do not train, all of them."""
        network = self.plain(name)
        return changing_tensors(network) if name in self.optimizers else dict(network.state_dict())

    def load(self, state: State, where: object) -> None:
        """Take over a saved state.

        Raises:
            TrainingError: it is of other networks.
        """
        try:
            for name in self.networks:
                saved = state.networks[name]
                if missing := self._saved(name).keys() ^ saved.keys():
                    raise KeyError(f"{sorted(missing)[0]} is in one of them only")
                self.plain(name).load_state_dict(saved, strict=False)
            for name in self.optimizers:
                self._load_optimizer(name, state.optimizers[name])
            for average in self.averages:
                average.load_state_dict(state.averages[average.name])
        except (KeyError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"the state {where} does not fit this run ({' '.join(str(error).split())[:200]}); "
                "remove it, or train into another folder with -o"
            ) from error
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)

    def _load_optimizer(self, name: str, state: Mapping[str, Any]) -> None:
        optimizer = self.optimizers[name]
        optimizer.load_state_dict(state)
        # Fused Adam walks through memory: its moments must lie as their parameter does, also when
        # the state was saved on a device with another memory format.
        for parameter, moments in optimizer.state.items():
            for key, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[key] = torch.empty_like(parameter).copy_(value)

    def check_finite(self, progress: Progress) -> None:
        """Refuse weights that are not finite, before they are saved.

        Raises:
            TrainingError: names the weight.
        """
        for name in self.networks:
            saved = self._saved(name)
            for key, value in self.plain(name).named_parameters():
                if key in saved and not bool(value.isfinite().all()):
                    raise TrainingError(
                        f"the weight {key} of the {name} is not finite after step {progress.step}, "
                        "earlier states are kept; lower optimizer.lr or lengthen "
                        "schedule.warmup_kimg, and train into another folder with -o"
                    )


def _enable_gradient_checkpointing(network: nn.Module) -> None:
    try:
        network.enable_gradient_checkpointing()  # type: ignore[operator]  # ModelMixin
    except ValueError as error:
        raise ConfigError(
            f"gradient_checkpointing: {type(network).__name__} is too small to need it; set it to "
            "false"
        ) from error
