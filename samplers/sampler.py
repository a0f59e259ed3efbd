"""The sampler of a diffusion model: solver, noise schedule and a stack of guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from genlab import config as configs
from genlab.diffusion.denoiser import Denoiser
from genlab.errors import ConfigError, SamplingError
from genlab.registry import class_path
from genlab.samplers import parts
from genlab.samplers.base import SCHEDULES, SOLVERS, AnySampler, Layers, Schedule, Solver
from genlab.samplers.guidance.base import GUIDANCE, GuidanceOptions, When
from genlab.samplers.parts import Part


@dataclass(kw_only=True)
class SamplerConfig:
    """How to sample from a diffusion model: the schema of ``sampler`` in every config.

    Attributes:
        solver: ``name`` in `SOLVERS` and the options of that solver.
        schedule: ``name`` in `SCHEDULES` and the options of that schedule.
        guidance: one mapping for each guidance, innermost first: ``name`` in `GUIDANCE` and its
            options.
    """

    example: ClassVar[Mapping[str, Any]] = {"schedule.num_steps": 10}

    solver: dict[str, Any] = field(default_factory=lambda: {"name": "heun"})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "karras", "num_steps": 18})
    guidance: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Sampler(AnySampler):
    """A solver, a schedule and the guidance around the denoiser, innermost first.

    Attributes:
        text: the configuration that it was made of; None where it was made of objects.
    """

    solver: Solver
    schedule: Schedule
    guidance: tuple[GuidanceOptions, ...] = ()
    text: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def config(self) -> Mapping[str, Any]:
        """See `AnySampler.config`; of objects, what differs from their defaults.

        >>> from genlab.samplers.schedules.karras import Karras
        >>> from genlab.samplers.solvers.heun import Heun
        >>> sampler = Sampler(solver=Heun(S_churn=10), schedule=Karras())
        >>> sampler.config["solver"]
        {'name': 'heun', 'S_churn': 10}
        """
        if self.text is not None:
            return self.text
        return {
            "solver": SOLVERS.entry_of(self.solver),
            "schedule": SCHEDULES.entry_of(self.schedule),
            "guidance": [GUIDANCE.entry_of(options) for options in self.guidance],
        }

    @classmethod
    def from_layers(
        cls, layers: Layers, *, num_steps: int | None = None, guidance_scale: float | None = None
    ) -> "Sampler":
        """See `AnySampler.from_layers`; the guidance scale is that of classifier-free guidance."""
        layers = list(layers)
        if num_steps is not None:
            if num_steps < 1:
                raise ConfigError(f"the number of steps must be at least 1, got {num_steps}")
            layers.append(("the number of steps", {"schedule": {"num_steps": num_steps}}))
        whole = configs.fill(SamplerConfig, layers, "the sampler")
        if guidance_scale is not None:
            whole = replace(whole, guidance=_rescale(whole.guidance, guidance_scale))
        return cls(
            solver=SOLVERS.build_named(whole.solver),
            schedule=SCHEDULES.build_named(whole.schedule),
            guidance=tuple(GUIDANCE.build_named(entry) for entry in whole.guidance),
            text=vars(whole),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Sampler":
        """Make a sampler of one configuration; see `from_layers`.

        >>> Sampler.from_config({"solver": "euler", "schedule": {"num_steps": 9}}).describe()
        'euler, 9 steps'
        """
        return cls.from_layers([("the sampler", config)])

    def describe(self) -> str:
        """Solver, steps and guidance: ``heun (S_churn 40), 18 steps, cfg 2 (sigma 0.3 to 2)``."""
        config = self.config
        schedule = config["schedule"]
        steps = f"{schedule['num_steps']} steps" if "num_steps" in schedule else schedule["name"]
        guidance = map(_words, config["guidance"], self.guidance)
        return ", ".join([_words(config["solver"], self.solver), steps, *guidance])

    @property
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """See `AnySampler.parts`; parts that are named still must be loaded first."""
        found: dict[str, list[Part]] = {}
        for options in self.guidance:
            for option, kind in options.parts.items():
                part, known = getattr(options, option), found.setdefault(kind, [])
                if not any(part is other for other in known):
                    known.append(part)
        return found

    def load_parts(self) -> "Sampler":
        """See `AnySampler.load_parts`.

        Raises:
            GenLabError: there is no such model, or it is damaged.
        """
        return replace(self, guidance=tuple(_loaded(options) for options in self.guidance))

    def guide(self, denoiser: Denoiser) -> Denoiser:
        """The model under the whole stack of guidance.

        Raises:
            ConfigError: a guidance makes no sense for this model.
            SamplingError: what it wraps the model in is no denoiser.
        """
        for wrap in self.guidance:
            denoiser = wrap(denoiser)
            if not isinstance(denoiser, Denoiser):
                raise SamplingError(
                    f"the guidance {class_path(type(wrap))} must return a Guidance when it is "
                    f"called, got a {class_path(type(denoiser))}"
                )
        return denoiser


def _words(entry: Mapping[str, Any], built: Any) -> str:
    """A solver or a guidance by its name, its scale, and what else is not its default."""
    words, details = [str(entry["name"])], []
    for each in fields(built):
        value = getattr(built, each.name)
        if isinstance(value, When):
            details += [
                f"{key} {_number(window[0])} to {_number(window[1])}"
                for key, window in vars(value).items()
                if window is not None
            ]
        elif each.name == "scale":
            words.append(_number(value))
        elif value != each.default and isinstance(value, bool):
            details.append(each.name if value else f"no {each.name}")
        elif value != each.default and isinstance(value, int | float | str):
            details.append(f"{each.name} {_number(value)}")
    return " ".join([*words, *([f"({', '.join(details)})"] if details else [])])


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _loaded(options: GuidanceOptions) -> GuidanceOptions:
    named: dict[str, Any] = {
        option: parts.load(kind, getattr(options, option))
        for option, kind in options.parts.items()
        if isinstance(getattr(options, option), str)
    }
    return replace(options, **named) if named else options


def _rescale(guidance: list[dict[str, Any]], scale: float) -> list[dict[str, Any]]:
    if scale == 1:
        return [entry for entry in guidance if entry["name"] != "cfg"]
    if any(entry["name"] == "cfg" for entry in guidance):
        return [
            {**entry, "scale": scale} if entry["name"] == "cfg" else entry for entry in guidance
        ]
    return [*guidance, {"name": "cfg", "scale": scale}]
