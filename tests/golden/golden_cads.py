"""CADS: its schedule, the noise on embeddings, and whole runs of DiT with annealed classes."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from golden_cases import MismatchError, Run
from golden_dit import GUIDED, converted
from golden_noise import MAIN, RecordedNoise
from torch import Tensor, nn

from genlab.diffusion.condition import Condition
from genlab.samplers.guidance.annealing import cads_gamma
from genlab.samplers.guidance.cads import STREAMS, anneal_embedding
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler

TIMES: dict[str, Callable[[int, int], float]] = {
    "1 - step/num_steps": lambda step, steps: 1 - step / steps,
    "1 - (step + 1)/num_steps": lambda step, steps: 1 - (step + 1) / steps,
}
"""The paper's time of a step, and that of an implementation which counts before it looks."""


def _gammas(run: Run, time: str) -> list[float]:
    params = run.params("tau1", "tau2", "num_steps")
    steps = params.pop("num_steps")
    if time not in TIMES:
        raise MismatchError(f"{run.id}: unknown time {time!r}")
    return [cads_gamma(TIMES[time](step, steps), **params) for step in range(steps)]


def gamma(run: Run) -> None:
    columns = {"gamma": "1 - step/num_steps", "gamma_comfy": "1 - (step + 1)/num_steps"}
    run.expect_all(
        {
            name: torch.tensor(_gammas(run, time), dtype=torch.float64)
            for name, time in columns.items()
        }
    )


def noise(run: Run) -> None:
    """Where statistics are those of the whole batch, it is one sample to ours."""
    y, fresh = run.input("y"), run.input("noise")
    options = run.params("gamma", "s", "psi")
    run.params("note")  # says in words what the output shows
    scope = run.params("scope")["scope"]
    if scope not in ("batch", "sample"):
        raise MismatchError(f"{run.id}: unknown scope {scope!r}")
    samples = (1, -1) if scope == "batch" else y.shape
    out = anneal_embedding(y.reshape(samples), fresh.reshape(samples), **options).reshape(y.shape)
    rows = run.params("rows").get("rows")
    run.expect_all({"out": out if rows is None else out[rows]})


def node(run: Run) -> None:
    """A batch of a class and the null class, of which the class alone is annealed."""
    y, fresh = run.input("y"), run.input("noise")
    options = run.params("s", "psi")
    gammas = _gammas(run, run.params("time")["time"])
    seen = []
    for share, row in zip(gammas, fresh, strict=True):

        def transform(of: Tensor, share: float = share, row: Tensor = row) -> Tensor:
            return anneal_embedding(of, row.expand_as(of), share, **options)

        half = Condition(labels=torch.zeros(len(y) // 2, dtype=torch.int64))
        half = half.with_embedding_transform(transform)
        seen.append(Condition.cat([half, half.null()]).transform_embedding(y))
    run.expect_all({"y_seen": torch.stack(seen)})


def dit(run: Run) -> None:
    """DiT's loop with noise on its class embedding.

    The official batch is doubled, and its second half is thrown away in the end. Ours samples the
    first half alone, which does not depend on the other, and that is what is compared.
    """
    generator = converted(run.case)
    z, labels = (run.input(name) for name in ("z", "y"))
    size = len(z) // 2
    assert bool((labels[size:] == generator.num_classes).all())
    params, eta = run.params("method", "num_steps", "cfg_scale"), run.params("eta")
    annealing = run.params("tau1", "tau2", "s", "psi")
    both = run.params("null").get("null", False)
    sampler = Sampler.from_config(
        {
            "solver": {"name": params["method"], "clip": False, **eta},
            "schedule": {"name": "respaced", "steps": params["num_steps"]},
            "guidance": [
                {"name": "cfg", "scale": params["cfg_scale"], "channels": GUIDED},
                {"name": "cads", **annealing, "branches": "both" if both else "condition"},
            ],
        }
    )
    recorded = FirstHalf(run, size)
    seen = Embeddings(generator.network)
    embedding, steps = [], []
    with torch.no_grad():
        for step in sample_steps(
            sampler,
            generator.denoiser,
            noise=recorded,
            condition=Condition(labels=labels[:size]),
            image_shape=z.shape[1:],
            device="cpu",
            latents=z[:size],
        ):
            steps.append(step)
            embedding.append(seen.take()[:size])
    seen.remove()
    recorded.expect_unused(_gammas(run, "1 - step/num_steps").count(1.0))
    sample = run.reference("sample").clone()
    sample[:size] = steps[-1].x
    run.expect_all({"sample": sample, "embedding": torch.stack(embedding)})


class FirstHalf(RecordedNoise):
    """The draws of a doubled batch: those of its first half, with the null rows' beside them."""

    def __init__(self, run: Run, size: int) -> None:
        super().__init__(run)
        if set(self.streams) - {MAIN, "cads"}:
            raise MismatchError(f"{run.id}: draws of unknown kinds, {sorted(self.streams)}")
        annealing = self.streams.pop("cads")
        self.rows[:] = [row[:size] for row in self.rows]
        self.streams[STREAMS["condition"]] = [row[:size] for row in annealing]
        null = [row[size:] for row in annealing if len(row) > size]
        if null:
            self.streams[STREAMS["null"]] = null

    def expect_unused(self, count: int) -> None:
        """Fail unless so many draws for embeddings are left, the steps that see a whole class."""
        for name in STREAMS.values():
            rows = self.streams.pop(name, None)
            if rows is not None and len(rows) != count:
                raise MismatchError(
                    f"{self.run.id}: {len(rows)} draws of {name} are left, not {count}"
                )
        self.expect_end()


class Embeddings:
    """Notes the class embedding that a network is given; parts of a batch may come in any order."""

    def __init__(self, network: nn.Module) -> None:
        self._parts: list[tuple[int, Tensor]] = []
        self._lock = Lock()
        self._hook = network.register_forward_hook(self._note)

    def _note(self, network: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        with self._lock:
            self._parts.append((args[2].data_ptr(), args[2]))

    def take(self) -> Tensor:
        """That of the call which has just ended, in the order of its rows."""
        with self._lock:
            parts = sorted(self._parts, key=lambda part: part[0])
            self._parts.clear()
        return torch.cat([rows for _, rows in parts])

    def remove(self) -> None:
        self._hook.remove()


CHECKS = {"cads_dit": dit, "cads_gamma": gamma, "cads_node": node, "cads_noise": noise}
