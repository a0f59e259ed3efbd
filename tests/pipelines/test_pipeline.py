"""The diffusers pipeline object: calls, callbacks, folders, and the images of ``genlab sample``."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

import genlab
from genlab import DiffusionGenerator, GenLabPipeline
from genlab.data.pixels import to_uint8
from genlab.errors import CheckpointError, ConfigError, LabelError
from genlab.samplers.base import SOLVERS
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.euler import Euler

Pipe = Any
"""A `GenLabPipeline`; the arguments of a call decide which of several types it gives."""


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipe:
    pipe: Pipe = GenLabPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


FEW = {"schedule": {"num_steps": 4}}


def test_a_list_of_generators_gives_the_images_of_the_seeds(
    pipe: Pipe, tiny_generator: DiffusionGenerator
) -> None:
    seeds, labels = (0, 1, 17), (2, 0, 1)
    images = pipe(list(labels), 4, generator=seeded(*seeds)).images
    expected = to_uint8(tiny_generator.sample(seeds, labels, FEW))
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), expected[:, 0])


def test_classes_that_are_not_given_are_those_of_the_seeds(
    pipe: Pipe, tiny_generator: DiffusionGenerator
) -> None:
    images = pipe(num_inference_steps=4, generator=seeded(5, 6), output_type="pt").images
    expected = tiny_generator.sample((5, 6), None, FEW)
    assert torch.equal(images, expected / 2 + 0.5)


def test_output_types_show_the_same_image(pipe: Pipe) -> None:
    def draw(kind: str) -> Any:
        return pipe(1, 4, generator=seeded(3), output_type=kind).images

    pil, array, tensor = draw("pil"), draw("np"), draw("pt")
    assert pil[0].mode == "L"
    assert array.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(array[0], tensor[0].permute(1, 2, 0).numpy())
    # Our pixels are floor(255 y + 0.5): half a level at most.
    assert np.abs(np.asarray(pil[0]) - array[0, ..., 0] * 255).max() <= 0.5 + 1e-4


def test_return_dict(pipe: Pipe) -> None:
    assert isinstance(pipe(0, 2), ImagePipelineOutput)
    plain = pipe(0, 2, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain[0]) == 1


def test_latents_replace_the_first_draw(pipe: Pipe) -> None:
    (generator,) = seeded(11)
    latents = torch.randn(1, 8, 8, generator=generator)[None]
    given = pipe(1, 4, latents=latents, output_type="pt").images
    drawn = pipe(1, 4, generator=seeded(11), output_type="pt").images
    assert torch.equal(given, drawn)


def test_one_generator_serves_all_images_in_turn(pipe: Pipe) -> None:
    (one,) = seeded(4)
    first = pipe([0, 0], 2, generator=one, output_type="pt").images
    (again,) = seeded(4)
    assert torch.equal(first, pipe([0, 0], 2, generator=again, output_type="pt").images)
    assert not torch.equal(first[0], first[1])


def test_without_generators_the_global_one_decides(pipe: Pipe) -> None:
    torch.manual_seed(7)
    first = pipe(batch_size=2, num_inference_steps=2, output_type="pt").images
    other = pipe(batch_size=2, num_inference_steps=2, output_type="pt").images
    torch.manual_seed(7)
    again = pipe(batch_size=2, num_inference_steps=2, output_type="pt").images
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_classes_by_name_number_and_tensor(pipe: Pipe) -> None:
    def draw(labels: Any) -> Tensor:
        return pipe(labels, 2, generator=seeded(1, 2), output_type="pt").images

    assert torch.equal(draw(["sneaker", "Ankle boot"]), draw([1, 2]))
    assert torch.equal(draw(torch.tensor([1, 2])), draw([1, 2]))
    assert torch.equal(draw("sneaker"), draw([1, 1]))


def test_guidance_and_samplers(pipe: Pipe, tiny_generator: DiffusionGenerator) -> None:
    guided = pipe(1, 4, 3.0, generator=seeded(0), output_type="pt").images
    sampler = {**FEW, "guidance": [{"name": "cfg", "scale": 3.0}]}
    expected = tiny_generator.sample([0], [1], sampler) / 2 + 0.5
    assert torch.equal(guided, expected)
    euler = pipe(1, generator=seeded(0), sampler={**FEW, "solver": {"name": "euler"}})
    assert pipe.num_timesteps == 4
    assert euler.images != guided
    assert pipe(1, 4, 1.0, sampler="cfg", generator=seeded(0), output_type="pt").images.equal(
        pipe(1, 4, sampler="edm-heun", generator=seeded(0), output_type="pt").images
    )


def test_callbacks_see_every_step_and_may_change_it(pipe: Pipe) -> None:
    seen: list[tuple[int, float]] = []

    def look(owner: Any, index: int, sigma: float, tensors: dict[str, Tensor]) -> None:
        assert owner is pipe
        assert set(tensors) == {"latents", "x0"}
        seen.append((index, sigma))

    pipe(1, 4, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "x0"])
    assert [index for index, _ in seen] == [0, 1, 2, 3]
    assert seen[-1][1] == 0

    def erase(
        owner: Any, index: int, sigma: float, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {
            "latents": torch.full_like(tensors["latents"], 0.25)
            if index == 3
            else tensors["latents"]
        }

    images = pipe(1, 4, callback_on_step_end=erase, output_type="pt").images
    assert (images == 0.625).all()

    def mirror(
        owner: Any, index: int, sigma: float, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"latents": tensors["latents"].flip(-1)} if index == 0 else {}

    plain = pipe(1, 4, generator=seeded(0), output_type="pt").images
    changed = pipe(1, 4, generator=seeded(0), callback_on_step_end=mirror, output_type="pt").images
    assert not torch.allclose(plain, changed)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "diffusers"])
def test_a_callback_replaces_the_latents_under_every_solver(pipe: Pipe, solver: str) -> None:
    def draw(at: int | None) -> Tensor:
        def replace(
            owner: Any, index: int, sigma: float, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            last = index == owner.num_timesteps - 1
            replaced = torch.full_like(tensors["latents"], 0.25)
            return {"latents": replaced} if index == at or (at == -1 and last) else {}

        sampler = {"solver": {"name": solver}, "schedule": {"num_steps": 4}}
        images: Tensor = pipe(
            [1, 2],
            generator=seeded(0, 1),
            sampler=sampler,
            callback_on_step_end=replace,
            output_type="pt",
        ).images
        return images

    assert (draw(-1) == 0.625).all()
    plain, replaced = draw(None), draw(1)
    assert not torch.allclose(plain, replaced)


def test_a_callback_may_stop(pipe: Pipe) -> None:
    estimates: list[Tensor] = []

    def stop(owner: Any, index: int, sigma: float, tensors: dict[str, Tensor]) -> None:
        estimates.append(tensors["x0"])
        owner._interrupt = index == 1

    images = pipe(
        1, 4, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["x0"], output_type="pt"
    ).images
    assert len(estimates) == 2
    assert torch.equal(images, (estimates[1].float() / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_labels": [0, 1], "batch_size": 3}, ConfigError, "class_labels 2, batch_size 3"),
        ({"class_labels": []}, ConfigError, "0 images"),
        ({"class_labels": 3}, LabelError, "class 3"),
        ({"class_labels": "ankle bot"}, LabelError, "did you mean 'Ankle boot'"),
        ({"output_type": "jpg"}, ConfigError, "'jpg'"),
        ({"latents": torch.zeros(1, 1, 4, 4)}, ConfigError, "shape"),
        ({"num_inference_steps": 0}, ConfigError, "at least 1"),
        ({"callback_on_step_end_tensor_inputs": ["embeds"]}, ConfigError, "'embeds'"),
    ],
)
def test_wrong_arguments_are_named(
    pipe: Pipe, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipe(**arguments)


FRESH = """
import sys
import numpy as np
import torch
import genlab

torch.set_num_threads(int(sys.argv[3]))
pipe = genlab.GenLabPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
seeds = [torch.Generator().manual_seed(s) for s in (0, 1)]
np.save(sys.argv[2], pipe([1, 2], 4, 2.0, generator=seeds, output_type="np").images)
"""


def test_folders_go_round_in_a_fresh_process(
    pipe: Pipe, tiny_generator: DiffusionGenerator, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    command: list[str | Path] = [
        sys.executable,
        "-W",
        "error",
        "-c",
        FRESH,
        tmp_path / "model",
        tmp_path / "images.npy",
        # The number of threads decides in what order sums are taken, hence the last bits.
        str(torch.get_num_threads()),
    ]
    subprocess.run(command, check=True)
    ours = pipe([1, 2], 4, 2.0, generator=seeded(0, 1), output_type="np").images
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), ours)
    generator = genlab.load(tmp_path / "model")
    assert generator.metadata() == tiny_generator.metadata()
    sampler = {**FEW, "guidance": [{"name": "cfg", "scale": 2.0}]}
    images = generator.sample([0, 1], [1, 2], sampler) / 2 + 0.5
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), ours)


def test_pipeline_and_generator_are_made_of_each_other(
    pipe: Pipe, tiny_generator: DiffusionGenerator
) -> None:
    assert pipe.as_generator().network is pipe.network
    other: Pipe = GenLabPipeline.from_generator(tiny_generator)
    assert other.as_generator().metadata() == tiny_generator.metadata()
    assert pipe.components == {"network": pipe.network, "autoencoder": None}


def test_diffusers_own_way_of_loading(tiny_model: Path, pipe: Pipe) -> None:
    # Any argument beyond the type takes diffusers' code, which finds our classes imported.
    other: Pipe = GenLabPipeline.from_pretrained(tiny_model, use_safetensors=True)
    other.set_progress_bar_config(disable=True)
    ours = pipe(1, 4, generator=seeded(0), output_type="pt").images
    theirs = other(1, 4, generator=seeded(0), output_type="pt").images
    # Loaded weights may lie elsewhere in memory, which changes the last bits.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_the_type_is_chosen_when_loading(tiny_model: Path) -> None:
    half: Pipe = GenLabPipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.dtype == torch.bfloat16
    assert half(1, 2, output_type="pt").images.dtype == torch.float32


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        GenLabPipeline.from_pretrained(tmp_path)


def test_small_models_take_the_first_steps(
    pipe: Pipe, tiny_model: Path, tiny_generator: DiffusionGenerator
) -> None:
    def draw(**options: Any) -> Tensor:
        images: Tensor = pipe([1, 2], 4, generator=seeded(3, 4), output_type="pt", **options).images
        return images

    metadata = {**tiny_generator.metadata(), "has_null_class": True}
    network = copy.deepcopy(tiny_generator.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    small = DiffusionGenerator.from_metadata(network, metadata)
    expected = tiny_generator.sample([3, 4], [1, 2], FEW, stitch=[(small, 0.5)]) / 2 + 0.5
    for stitch in ([(small, 0.5)], [{"model": small, "fraction": 0.5}], (small, 0.5)):
        assert torch.equal(draw(stitch=stitch), expected)
    assert not torch.equal(expected, draw())
    named = draw(stitch={str(tiny_model): 0.5})
    torch.testing.assert_close(named, draw(), rtol=0, atol=1e-5)  # a model and its own copy
    with pytest.raises(ConfigError, match=r"write MODEL:FRACTION"):
        draw(stitch="tiny")


def test_an_interval_confines_the_guidance(pipe: Pipe, tiny_generator: DiffusionGenerator) -> None:
    window = {"name": "cfg", "scale": 3.0, "when": {"sigma": [0.28, 2.9]}}
    expected = tiny_generator.sample([3], [1], {**FEW, "guidance": [window]}) / 2 + 0.5
    options = {"generator": seeded(3), "output_type": "pt"}
    images = pipe(1, 4, 3.0, guidance_interval=(0.28, 2.9), **options).images
    assert torch.equal(images, expected)
    options["generator"] = seeded(3)
    assert not torch.equal(images, pipe(1, 4, 3.0, **options).images)
    with pytest.raises(ConfigError, match="guidance_interval needs guidance by the class"):
        pipe(1, 4, guidance_interval=(0.28, 2.9))


def test_a_sampler_of_objects_is_taken(pipe: Pipe, tiny_generator: DiffusionGenerator) -> None:
    sampler = Sampler(solver=Euler(), schedule=Karras(num_steps=3))
    images = pipe(1, generator=seeded(3), output_type="pt", sampler=sampler).images
    assert torch.equal(images, tiny_generator.sample([3], [1], sampler) / 2 + 0.5)
    assert pipe.num_timesteps == 3
