"""The sampler of a diffusion model: solver, noise schedule and a stack of guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from typing_extensions import override

from genlab import config as configs
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, SamplingError, UnknownNameError
from genlab.registry import Registry, class_path
from genlab.samplers import parts, stitching, strength
from genlab.samplers.base import SCHEDULES, SOLVERS, AnySampler, Grid, Layers, Schedule, Solver
from genlab.samplers.combining import Combinable, check_combinable, check_data_space
from genlab.samplers.guidance.base import GUIDANCE, GuidanceOptions, When
from genlab.samplers.guidance.weights import Weight
from genlab.samplers.parts import Part
from genlab.samplers.stitching import Stitch, Stitched

MAX_GUIDANCE = 16
"""Guidance around guidance; each asks those inside it, and no use needs more than a few."""


@dataclass(kw_only=True)
class SamplerConfig:
    """How to sample from a diffusion model: the schema of ``sampler`` in every config.

    Attributes:
        solver: ``name`` in `SOLVERS` and the options of that solver.
        schedule: ``name`` in `SCHEDULES` and the options of that schedule.
        guidance: one mapping for each guidance, innermost first: ``name`` in `GUIDANCE` and its
            options.
        stitch: one mapping for each small model that takes steps in place of the model, those of
            the noisiest steps first: the options of `genlab.samplers.stitching.Stitch`, or text as
            ``dit-fmnist-s:0.4``.
    """

    example: ClassVar[Mapping[str, Any]] = {"schedule.num_steps": 10}

    solver: dict[str, Any] = field(default_factory=lambda: {"name": "heun"})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "karras", "num_steps": 18})
    guidance: list[dict[str, Any]] = field(default_factory=list)
    stitch: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Sampler(AnySampler):
    """A solver, a schedule and the guidance around the denoiser, innermost first.

    Attributes:
        stitch: small models that take the noisiest steps, below all guidance.
        text: the configuration that it was made of; None where it was made of objects.
    """

    solver: Solver
    schedule: Schedule
    guidance: tuple[GuidanceOptions, ...] = ()
    stitch: tuple[Stitch, ...] = ()
    text: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for options in self.guidance[:-1]:
            if options.outermost:
                raise ConfigError(
                    f"{_title(options)} changes what all other guidance asks the model with,"
                    " so it must be the last one in sampler.guidance (the outermost), and be there"
                    " once; move it behind the others"
                )
        stitching.check(self.stitch)

    @property
    @override
    def config(self) -> Mapping[str, Any]:
        """Of objects, what differs from their defaults.

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
            "guidance": [_entry(options) for options in self.guidance],
            **({"stitch": [each.to_config() for each in self.stitch]} if self.stitch else {}),
        }

    @classmethod
    @override
    def from_layers(
        cls,
        layers: Layers,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> "Sampler":
        """Change steps and guidance.

        The guidance scale is that of the guidance that makes classes clearer (`cfg`, `apg` and
        their like); where there is none, classifier-free guidance is added.
        """
        layers = list(layers)
        if num_steps is not None:
            if num_steps < 1:
                raise ConfigError(f"the number of steps must be at least 1, got {num_steps}")
            layers.append(("the number of steps", {"schedule": {"num_steps": num_steps}}))
        for _, layer in layers:  # before merging, which takes its time for each of them
            listed = layer.get("guidance") if isinstance(layer, Mapping) else None
            if isinstance(listed, list | tuple) and len(listed) > MAX_GUIDANCE:
                raise ConfigError(
                    f"sampler.guidance has {len(listed):,} entries; name at most {MAX_GUIDANCE}"
                )
        whole = configs.fill(SamplerConfig, layers, "the sampler")
        if guidance_scale is not None:
            whole = replace(whole, guidance=_rescale(whole.guidance, guidance_scale))
        if guidance_interval is not None:
            guidance = _confine(whole.guidance, guidance_interval, guidance_scale)
            whole = replace(whole, guidance=guidance)
        text = dict(vars(whole))
        stitch = stitching.entries_of(text.pop("stitch"))
        if stitch:  # runs without are recorded as if there were no such setting
            text["stitch"] = stitch
        return cls(
            solver=SOLVERS.build_named(whole.solver, "sampler.solver"),
            schedule=SCHEDULES.build_named(whole.schedule, "sampler.schedule"),
            guidance=tuple(
                GUIDANCE.build_named(entry, f"sampler.guidance.{number}")
                for number, entry in enumerate(whole.guidance)
            ),
            stitch=stitching.build(stitch),
            text=text,
        )

    @override
    def with_scales_of(self, own: AnySampler | None) -> "Sampler":
        """Objects have their scale."""
        if self.text is None:
            return self
        theirs = own.guidance if isinstance(own, Sampler) else ()
        entries = strength.with_scales(self.text["guidance"], theirs)
        if entries == self.text["guidance"]:
            return self
        guidance = tuple(GUIDANCE.build_named(entry) for entry in entries)
        return replace(self, guidance=guidance, text={**self.text, "guidance": entries})

    @override
    def left_out(self) -> Mapping[str, Any]:
        config = self.config
        named: list[tuple[str, Any, Any]] = [
            ("solver", config["solver"], self.solver),
            ("schedule", config["schedule"], self.schedule),
        ]
        for number, pair in enumerate(zip(config["guidance"], self.guidance, strict=True)):
            named.append((f"guidance.{number}", *pair))
        return {
            key: value
            for place, entry, built in named
            for key, value in strength.left_out(entry, built, place)
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Sampler":
        """Make a sampler of one configuration; see `from_layers`.

        >>> Sampler.from_config({"solver": "euler", "schedule": {"num_steps": 9}}).describe()
        'euler, 9 steps'
        """
        return cls.from_layers([("the sampler", config)])

    def describe(self) -> str:
        """Solver, steps, small models, guidance: ``heun (S_churn 40), 18 steps, cfg 2``."""
        config = self.config
        schedule = config["schedule"]
        steps = f"{schedule['num_steps']} steps" if "num_steps" in schedule else schedule["name"]
        guidance = map(_words, config["guidance"], self.guidance)
        stitched = [each.describe() for each in self.stitch]
        return ", ".join([_words(config["solver"], self.solver), steps, *stitched, *guidance])

    @property
    @override
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """Parts that are named still must be loaded first."""
        parts: dict[str, list[Part]] = {}
        for options in self.guidance:
            for option, kind in options.parts.items():
                part, members = getattr(options, option), parts.setdefault(kind, [])
                if not any(part is other for other in members):
                    members.append(part)
        for stitch in self.stitch:
            members = parts.setdefault("generator", [])
            if not any(stitch.model is other for other in members):
                members.append(stitch.model)
        return parts

    @override
    def load_parts(self) -> "Sampler":
        """The same sampler with parts that are named read from where their names point to.

        Raises:
            GenLabError: there is no such model, or it is damaged.
        """
        return replace(
            self,
            guidance=tuple(_loaded(options) for options in self.guidance),
            stitch=stitching.load(self.stitch),
        )

    def guide(self, denoiser: Denoiser) -> Denoiser:
        """The model with its small ones, under the whole stack of guidance.

        Raises:
            ConfigError: a guidance makes no sense for this model, or a small model does not go with
                it.
            SamplingError: what it wraps the model in is no denoiser.
        """
        if not self.stitch:
            return self._wrap(denoiser)
        stitched = Stitched(denoiser, self.stitch)
        try:
            return self._wrap(stitched)
        except ConfigError as error:
            self._wrap(denoiser)  # what the large model refuses itself is no small one's fault
            raise ConfigError(
                f"not every stitched model can be guided like the model itself: {error}"
            ) from error

    def _wrap(self, denoiser: Denoiser) -> Denoiser:
        for wrap in self.guidance:
            denoiser = wrap(denoiser)
            if not isinstance(denoiser, Denoiser):
                raise SamplingError(
                    f"the guidance {class_path(type(wrap))} must return a Guidance when it is "
                    f"called, got a {class_path(type(denoiser))}"
                )
        return denoiser

    def check_parts(self, model: Combinable) -> None:
        """Refuse diffusion models beside the sampled one that denoise other data.

        Args:
            model: the one that is sampled.

        Raises:
            ConfigError: says which, and why.
        """
        for stitch in self.stitch:
            check_combinable(model, stitch.model, stitch.title)
        for options in self.guidance:
            for option in options.parts:
                part = getattr(options, option)
                if isinstance(part, Combinable):
                    check_data_space(model, part, f"the {option}")

    def grid(self, noise_levels: NoiseLevels) -> Grid:
        """The noise levels of a run.

        Raises:
            ConfigError: schedule or solver do not fit the model, or a guidance or a stitched model
                makes no sense for such a run.
            SamplingError: what the schedule returns is no row of noise levels.
        """
        grid = self.route(noise_levels)
        self.check_run(grid)
        return grid

    def route(self, noise_levels: NoiseLevels) -> Grid:
        """The same before anything of the sampler has looked at them; see `grid`."""
        return self.solver.route(Grid.of(self.schedule, noise_levels))

    def check_run(self, grid: Grid) -> None:
        """Refuse noise levels that some part of the sampler cannot use; see `grid`."""
        if not (self.solver.on_grid or grid.noise_levels.continuous):
            fit = ", ".join(name for name, each in SOLVERS.build_all().items() if each.on_grid)
            raise ConfigError(
                f"{_title(self.solver)} asks for noise levels between those of the schedule, and "
                f"this model knows those of its timesteps only; take one of {fit}, or a model "
                "whose preconditioning has interpolate: true"
            )
        stitching.check_run(self.stitch, grid, self.solver)
        for options in self.guidance:
            if options.remembers and self.solver.nfe(2) is None:
                raise ConfigError(
                    f"{_title(self.solver)} evaluates a batch as often as its slowest sample needs,"
                    f" and {_title(options)} remembers evaluations, so that an image would depend "
                    "on its batch; take another solver, or for apg momentum: 0"
                )
            options.check_run(grid)


def _title(made: Solver | GuidanceOptions) -> str:
    """What messages call a solver or a guidance, registered or not."""
    registry: Registry[Any] = SOLVERS if isinstance(made, Solver) else GUIDANCE
    kind = "solver" if isinstance(made, Solver) else "guidance"
    try:
        return f"the {registry.entry_of(made)['name']} {kind}"
    except UnknownNameError:
        return f"the {kind} {class_path(type(made))}"


def _entry(options: GuidanceOptions) -> dict[str, Any]:
    """A guidance as text, its scale included: without one it would take the model's."""
    entry = GUIDANCE.entry_of(options)
    scale = {"scale": getattr(options, "scale")} if options.by_class else {}  # noqa: B009
    return {"name": entry["name"], **scale, **entry}


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
        elif isinstance(value, Weight):
            details += [] if value == Weight() else [f"weight {value.name}"]
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
        return [entry for entry in guidance if not _is_by_class(entry)]
    if any(_is_by_class(entry) for entry in guidance):
        return [{**entry, "scale": scale} if _is_by_class(entry) else entry for entry in guidance]
    around = [entry for entry in guidance if _is_outermost(entry)]
    inside = [entry for entry in guidance if entry not in around]
    return [*inside, {"name": "cfg", "scale": scale}, *around]


def _is_by_class(entry: Mapping[str, Any]) -> bool:
    return _has(entry, "by_class")


def _is_outermost(entry: Mapping[str, Any]) -> bool:
    return _has(entry, "outermost")


def _has(entry: Mapping[str, Any], trait: str) -> bool:
    """Whether a guidance has a trait; one without a name is refused when it is built."""
    name = entry.get("name")
    return isinstance(name, str) and bool(getattr(GUIDANCE[name], trait, False))


def _confine(
    guidance: list[dict[str, Any]], interval: Sequence[float], scale: float | None
) -> list[dict[str, Any]]:
    """Let guidance act between two noise levels only; what acts on all of it stays as it is.

    A ``scale`` of 1 may have left none: a row of scales takes the same interval throughout.
    """
    sigma = list(interval) if isinstance(interval, Sequence) else []
    if len(sigma) != 2:
        raise ConfigError(f"guidance_interval takes two noise levels, low and high, got {interval}")
    confined = [entry for entry in guidance if not _is_outermost(entry)]
    if not confined and scale is None:
        raise ConfigError(
            "guidance_interval needs guidance by the class, and this sampler has none; give "
            "guidance_scale, too"
        )
    return [
        {**entry, "when": {**(entry.get("when") or {}), "sigma": sigma}}
        if entry in confined
        else entry
        for entry in guidance
    ]
