"""The registries of everything that a ``sampler`` can name.

They stand apart from the contracts, so that names can be listed (by shell completion, say) without
torch. Each registry is also exported beside the base class of its kind.
"""

from typing import TYPE_CHECKING

from genlab.registry import Registry

if TYPE_CHECKING:
    from genlab.samplers.autoregressive.base import Decoder
    from genlab.samplers.base import Schedule, Solver
    from genlab.samplers.guidance.base import GuidanceOptions

SOLVERS: "Registry[type[Solver]]" = Registry(
    "genlab.solvers",
    {
        "euler": "genlab.samplers.solvers.euler:Euler",
        "heun": "genlab.samplers.solvers.heun:Heun",
        "general": "genlab.samplers.solvers.general:General",
        "ddpm": "genlab.samplers.solvers.ddpm:DDPM",
        "ddim": "genlab.samplers.solvers.ddim:DDIM",
        "dpm2": "genlab.samplers.solvers.dpm2:DPM2",
        "dpm2-ancestral": "genlab.samplers.solvers.dpm2:DPM2Ancestral",
        "lms": "genlab.samplers.solvers.adams_bashforth:AdamsBashforth",
        "ipndm": "genlab.samplers.solvers.adams_bashforth:IPNDM",
        "deis": "genlab.samplers.solvers.adams_bashforth:DEIS",
        "dpmpp": "genlab.samplers.solvers.multistep:DPMSolverPP",
        "dpmpp-2s": "genlab.samplers.solvers.single_step:DPMSolverPP2S",
        "dpmpp-sde": "genlab.samplers.solvers.single_step:DPMSolverPPSDE",
        "unipc": "genlab.samplers.solvers.multistep:UniPC",
        "restart": "genlab.samplers.solvers.restart:Restart",
        "adaptive": "genlab.samplers.solvers.adaptive:Adaptive",
        "euler-ancestral": "genlab.samplers.solvers.euler_ancestral:EulerAncestral",
        "flow": "genlab.samplers.solvers.flow:FlowODE",
        "flow-sde": "genlab.samplers.solvers.flow_sde:FlowSDE",
        "diffusers": "genlab.samplers.solvers.diffusers_scheduler:DiffusersScheduler",
    },
    aliases={"two-stage": "general", "dpmpp-2m": "dpmpp"},
    builds="genlab.samplers.base:Solver",
)
SCHEDULES: "Registry[type[Schedule]]" = Registry(
    "genlab.schedules",
    {
        "karras": "genlab.samplers.schedules.karras:Karras",
        "vp": "genlab.samplers.schedules.vp:VP",
        "ve": "genlab.samplers.schedules.ve:VE",
        "iddpm": "genlab.samplers.schedules.iddpm:IDDPM",
        "cosine": "genlab.samplers.schedules.cosine:Cosine",
        "linear": "genlab.samplers.schedules.karras:Linear",
        "exponential": "genlab.samplers.schedules.exponential:Exponential",
        "polyexponential": "genlab.samplers.schedules.exponential:Polyexponential",
        "respaced": "genlab.samplers.schedules.respaced:Respaced",
        "timesteps": "genlab.samplers.schedules.timesteps:Timesteps",
        "flow": "genlab.samplers.schedules.flow_times:FlowTimes",
        "levels": "genlab.samplers.schedules.listed:Levels",
        "diffusers": "genlab.samplers.schedules.diffusers_scheduler:DiffusersLevels",
    },
    aliases={"lu": "exponential"},
    builds="genlab.samplers.base:Schedule",
)
GUIDANCE: "Registry[type[GuidanceOptions]]" = Registry(
    "genlab.guidance",
    {
        "cfg": "genlab.samplers.guidance.classifier_free:ClassifierFree",
        "classifier": "genlab.samplers.guidance.classifier:ClassifierGuidance",
        "auto": "genlab.samplers.guidance.autoguidance:Autoguidance",
        "apg": "genlab.samplers.guidance.adaptive_projected:AdaptiveProjected",
        "fdg": "genlab.samplers.guidance.frequency_decoupled:FrequencyDecoupled",
        "cfg-zero": "genlab.samplers.guidance.cfg_zero:CFGZero",
        "cads": "genlab.samplers.guidance.cads:CADS",
    },
    aliases={"autoguidance": "auto", "cfg-zero-star": "cfg-zero"},
    builds="genlab.samplers.guidance.base:GuidanceOptions",
)
DECODERS: "Registry[type[Decoder]]" = Registry(
    "genlab.decoders",
    {
        "cached": "genlab.samplers.autoregressive.cached:Cached",
        "jacobi": "genlab.samplers.autoregressive.jacobi:Jacobi",
        "naive": "genlab.samplers.autoregressive.naive:Naive",
    },
)
