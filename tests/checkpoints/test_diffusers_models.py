"""Folders that diffusers itself wrote, read by GenLab and drawn from by both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from tiny_autoencoder import tiny_kl

import genlab
from genlab import DiffusionGenerator
from genlab.checkpoints.autoencoders import read_autoencoder
from genlab.checkpoints.readers.diffusers_models import export_dit
from genlab.checkpoints.readers.diffusers_schedulers import parse_scheduler, scheduler_config
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.noise import NoiseStream
from genlab.errors import CheckpointError, ConfigError, GenLabError
from genlab.networks import DiT
from genlab.networks.diffusers_dit import DiffusersDiT

SEEDS = [3, 1]
WEIGHTS = "diffusion_pytorch_model.safetensors"
QUIET = {"beta_start": 0.001, "beta_end": 0.03, "num_train_timesteps": 48, "clip_sample": False}


def redraw(model: Any) -> Any:
    """Weights that leave no branch silent."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def unet(**options: Any) -> Any:
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        **options,
    }
    return redraw(UNet2DModel(**settings))


def transformer(channels: int = 2) -> Any:
    return redraw(
        DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=channels,
                              out_channels=2 * channels, num_layers=2, sample_size=4,
                              num_embeds_ada_norm=3)
    )  # fmt: skip


@pytest.fixture(scope="module")
def ddpm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddpm")
    pipeline: Any = DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler(**QUIET))
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    names = {0: "tench, Tinca tinca", 1: "goldfish", 2: "white shark, man-eater"}
    pipeline: Any = DiTPipeline(
        transformer(), tiny_kl(channels=3).model, DDIMScheduler(**QUIET), id2label=names
    )
    pipeline.save_pretrained(folder)
    config_with("model_index.json", id2label=names)(folder)  # as the official folders have it
    return folder


def config_with(part: str, **changes: Any) -> Any:
    def damage(folder: Path) -> None:
        path = folder / part
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def copy_of(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    return to


def read(folder: Path, config: dict[str, Any] | None = None) -> DiffusionGenerator:
    generator = genlab.convert(folder, config=config)
    assert isinstance(generator, DiffusionGenerator)
    return generator


SCHEDULERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "v, scaled linear": {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
    "x0, cosine, trailing": {
        "prediction_type": "sample",
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "trailing",
    },
    "clipped, offset": {"clip_sample": True, "steps_offset": 1},
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_unet_is_sampled_as_diffusers_does(kind: str, tmp_path: Path) -> None:
    scheduler: Any = DDIMScheduler(**{**QUIET, **SCHEDULERS[kind]})
    model = unet(num_class_embeds=3)
    model.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    generator = read(tmp_path, {"num_steps": 6})

    latents, labels = torch.randn(2, 1, 8, 8), torch.tensor([2, 0])
    x = latents
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, labels).sample, t, x).prev_sample
    noise = NoiseStream(SEEDS)
    *_, last = generator.steps(noise, [2, 0], generator.build_sampler(), latents)
    torch.testing.assert_close(last.x.float(), x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_pipeline_folder(ddpm_folder: Path, tmp_path: Path) -> None:
    generator = genlab.load(ddpm_folder)  # no format, no config
    assert isinstance(generator, DiffusionGenerator)
    assert (generator.image_shape, generator.num_classes) == ((1, 8, 8), 3)
    assert not generator.has_null_class
    assert generator.sampler.config["solver"] == {"name": "ddpm", "clip": False}
    assert generator.sampler.config["schedule"]["num_steps"] == 48
    few = {"schedule": {"num_steps": 3}}
    images = generator.sample(SEEDS, [0, 2], few)
    generator.save_pretrained(tmp_path / "model")
    assert torch.equal(genlab.load(tmp_path / "model").sample(SEEDS, [0, 2], few), images)
    soft = generator.sample(SEEDS, [0, 1], few)
    assert not torch.equal(soft, images)


def test_dit_pipeline(dit_folder: Path, tmp_path: Path) -> None:
    generator = read(dit_folder)
    assert generator.class_names == ("tench", "goldfish", "white shark")
    assert (generator.image_shape, generator.has_null_class) == ((3, 8, 8), True)
    assert isinstance(generator.network, DiffusersDiT)

    pipeline: Any = DiTPipeline.from_pretrained(dit_folder)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    seed = torch.Generator().manual_seed(5)
    drawn = pipeline([1], 1.0, seed, num_inference_steps=6, output_type="np").images
    stack = generator.build_sampler({"schedule": {"num_steps": 6}})
    *_, last = generator.steps(NoiseStream([5]), [1], stack, latents)
    ours = (generator.decode(last.x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(drawn), rtol=1e-3, atol=1e-4)

    images = generator.sample(SEEDS, [0, 2])
    generator.save_pretrained(tmp_path / "model")
    assert torch.equal(genlab.load(tmp_path / "model").sample(SEEDS, [0, 2]), images)


def test_export_and_back(dit_folder: Path, tmp_path: Path) -> None:
    generator = read(dit_folder)
    [note] = export_dit(generator, tmp_path / "out")
    assert "class 1000" in note
    again = read(tmp_path / "out")
    assert again.weights_sha256() == generator.weights_sha256()
    assert again.preconditioning == generator.preconditioning
    assert again.class_names == generator.class_names
    DiTPipeline.from_pretrained(tmp_path / "out")  # diffusers reads it
    first = load_file(dit_folder / "transformer" / WEIGHTS)
    second = load_file(tmp_path / "out" / "transformer" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def plain_dit(**options: Any) -> DiffusionGenerator:
    network = DiT(**{"img_resolution": 4, "in_channels": 2, "out_channels": 4, "label_dim": 3,
                     "hidden_size": 16, "depth": 2, "num_heads": 2, **options})  # fmt: skip
    return DiffusionGenerator(redraw(network), Discrete(variance="learned_range"))


def test_export_of_the_papers_dit(tmp_path: Path) -> None:
    """The weights come back as they were; diffusers' class takes them in every block."""
    generator = plain_dit()
    notes = export_dit(generator, tmp_path)
    assert any("frequencies of its own" in note for note in notes)
    assert any("class 1000 for the null class" in note for note in notes)
    again = read(tmp_path)
    ours, back = generator.network.state_dict(), again.network.state_dict()
    assert isinstance(again.network, DiT)
    assert all(torch.equal(ours[name], back[name]) for name in ours if name != "pos_embed")
    before, after = generator.preconditioning.levels, again.preconditioning.levels
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert again.preconditioning.variance == "learned_range"
    theirs: Any = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    assert len(theirs.transformer_blocks) == 2


def drawn_by_diffusers(pipeline: Any, seed: int) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    images = pipeline([1], 1.0, generator, num_inference_steps=6, output_type="np").images
    return torch.from_numpy(images)


def drawn_by_us(generator: DiffusionGenerator, seed: int) -> torch.Tensor:
    latents = torch.randn(1, *generator.state_shape, generator=torch.Generator().manual_seed(seed))
    built = generator.build_sampler(num_steps=6)
    *_, last = generator.steps(NoiseStream([seed]), [1], built, latents)
    return (generator.decode(last.x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def test_what_another_program_saves_again_is_drawn_as_that_program_draws_it(
    tmp_path: Path,
) -> None:
    """The mark of the paper's time features goes with the weights that GenLab wrote, no others."""
    generator = plain_dit()
    generator = generator.changed(autoencoder=tiny_kl(channels=3).model)
    export_dit(generator, tmp_path / "out")
    assert isinstance(read(tmp_path / "out").network, DiT)

    pipeline: Any = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.save_pretrained(tmp_path / "again")
    again = read(tmp_path / "again")
    assert isinstance(again.network, DiffusersDiT)
    theirs = drawn_by_diffusers(pipeline, 5)
    torch.testing.assert_close(drawn_by_us(again, 5), theirs, rtol=1e-3, atol=1e-4)
    pipeline.save_pretrained(tmp_path / "out")  # over what GenLab wrote
    assert isinstance(read(tmp_path / "out").network, DiffusersDiT)


@pytest.mark.parametrize(
    ("channels", "solver", "clips"),
    [
        (4, None, False),  # latents, without an autoencoder
        (2, {"name": "ddim", "clip": True}, False),
        (3, None, True),
        (1, {"name": "ddim", "clip": True}, True),
        (1, {"name": "ddim", "clip": False}, False),
    ],
)
def test_estimates_of_latents_are_never_clipped(
    channels: int, solver: dict[str, Any] | None, clips: bool, tmp_path: Path
) -> None:
    generator = plain_dit(in_channels=channels, out_channels=2 * channels)
    if solver is not None:
        generator = generator.changed(sampler={"solver": solver})
    notes = export_dit(generator, tmp_path)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert config["clip_sample"] is clips
    assert any("class 1000 for the null class" in note for note in notes)
    assert any("no autoencoder" in note for note in notes)


@pytest.mark.parametrize(
    "model",
    [
        Discrete(T=500),
        Discrete(T=500, schedule="scaled_linear", prediction="v", zero_terminal_snr=True),
        Discrete(T=50, schedule="cosine", prediction="x0", variance="learned"),
    ],
    ids=str,
)
def test_written_schedules_have_the_same_levels(model: Discrete) -> None:
    config = scheduler_config(model, clip=False)
    back = parse_scheduler(config, predicts_variance=model.variance == "learned").preconditioning
    torch.testing.assert_close(back.levels, model.levels, rtol=1e-12, atol=0)
    assert (back.prediction, back.variance) == (model.prediction, model.variance)
    theirs: Any = DDIMScheduler.from_config(config)
    alpha_bar = 1 / (1 + model.levels**2)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), alpha_bar, rtol=1e-3, atol=1e-6)


def test_rescaled_timesteps_are_not_written() -> None:
    with pytest.raises(ConfigError, match="rescale_timesteps"):
        scheduler_config(Discrete(T=500, rescale_timesteps=True), clip=False)


def test_a_multistep_scheduler_as_diffusers_writes_it(tmp_path: Path) -> None:
    scheduler: Any = DPMSolverMultistepScheduler()  # its variance_type is null
    unet().save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    assert read(tmp_path).sampler.config["solver"]["name"] == "dpmpp"


def test_a_claimed_width_meets_the_shapes_before_memory_is_taken(tmp_path: Path) -> None:
    export_dit(plain_dit(), tmp_path)
    config_with("transformer/config.json", num_attention_heads=1, attention_head_dim=60000)(
        tmp_path
    )
    with pytest.raises(CheckpointError, match=r"where \[60000, 2, 2, 2\] is needed"):
        read(tmp_path)


def test_what_diffusers_cannot_express_is_not_exported(
    tmp_path: Path, tiny_generator: DiffusionGenerator
) -> None:
    with pytest.raises(ConfigError, match="only DiTs can be written"):
        export_dit(tiny_generator, tmp_path)
    with pytest.raises(ConfigError, match="no hyper-connections"):
        export_dit(plain_dit(num_streams=2), tmp_path)
    with pytest.raises(ConfigError, match="always has a null class"):
        export_dit(plain_dit(null_class=False), tmp_path)


def test_pickled_and_sharded_weights(ddpm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(ddpm_folder, tmp_path)
    weights = folder / "unet" / WEIGHTS
    state = load_file(weights)
    weights.unlink()
    old = {name.replace(".to_q.", ".query."): value for name, value in state.items()}
    torch.save(old, folder / "unet" / "diffusion_pytorch_model.bin")
    expected = read(ddpm_folder).weights_sha256()
    assert read(folder).weights_sha256() == expected

    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    names = sorted(state)
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: state[n] for n in names if places[n] == file}, folder / "unet" / file)
    index = folder / "unet" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert read(folder).weights_sha256() == expected

    (folder / "unet" / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there is no file .*part-1"):
        read(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read(folder)


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def pickled(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({"conv_in.weight": _Evil()}, folder / "unet" / "diffusion_pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-50])


UNET_CONFIG, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
DAMAGE: dict[str, tuple[Any, str]] = {
    "foreign class": (config_with(UNET_CONFIG, _class_name="os.system"), "of no format"),
    "not JSON": (lambda f: (f / UNET_CONFIG).write_text("{"), "of no format"),
    "pickled code": (pickled, "never runs"),
    "cut short": (cut, "cut short or damaged"),
    "no weights": (lambda f: (f / "unet" / WEIGHTS).unlink(), "holds no weights"),
    "no scheduler": (lambda f: (f / SCHEDULER).unlink(), "does not say how its model was trained"),
    "other shapes": (config_with(UNET_CONFIG, block_out_channels=[8, 16]), "does not fit"),
    "other classes": (config_with(UNET_CONFIG, num_class_embeds=4), "does not fit"),
    "absurd depth": (config_with(UNET_CONFIG, layers_per_block=10**9), "more than any network"),
    "absurd width": (
        config_with(UNET_CONFIG, block_out_channels=[2**30] * 2),
        "does not fit|built",
    ),
    "unknown block": (config_with(UNET_CONFIG, down_block_types=["x", "y"]), "cannot be built"),
    "oblong images": (config_with(UNET_CONFIG, sample_size=[8, 4]), "square images"),
    "other condition": (config_with(UNET_CONFIG, class_embed_type="timestep"), "other things than"),
    "fourier times": (config_with(UNET_CONFIG, time_embedding_type="fourier"), "positional"),
    "betas by hand": (config_with(SCHEDULER, trained_betas=[0.1]), "trained_betas"),
    "odd betas": (config_with(SCHEDULER, beta_schedule=[]), r"beta_schedule \[\]"),
    "odd spacing": (config_with(SCHEDULER, timestep_spacing=[]), "spacing"),
    "a vast beta": (config_with(SCHEDULER, beta_end=10**400), "beta_end of DDPMScheduler must be"),
    "absurd chain": (config_with(SCHEDULER, num_train_timesteps=10**11), "in 1 ... 100000"),
    "no chain": (config_with(SCHEDULER, _class_name="ScoreSdeVeScheduler"), "none of a discrete"),
    "a flow": (
        config_with(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
        "none of a discrete model",
    ),
    "unknown betas": (config_with(SCHEDULER, beta_schedule="sigmoid"), "beta_schedule 'sigmoid'"),
    "beta of text": (config_with(SCHEDULER, beta_end="much"), "must be a number"),
    "thresholding": (config_with(SCHEDULER, thresholding="x" * 10**6), "thresholding of"),
    "unknown setting": (config_with(SCHEDULER, zero_beta=1), "'zero_beta' is no setting"),
    "unknown prediction": (config_with(SCHEDULER, prediction_type="flow"), "prediction_type"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(
    kind: str, ddpm_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(ddpm_folder, tmp_path)
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(GenLabError, match=message):
        genlab.convert(folder)
    assert "run" not in capsys.readouterr().out


def marked(folder: Path) -> None:
    weights = folder / "transformer" / WEIGHTS
    save_file(load_file(weights), weights, metadata={"genlab_official_time_features": "true"})


DIT_CONFIG, VAE_CONFIG = "transformer/config.json", "vae/config.json"
DIT_DAMAGE: dict[str, tuple[Any, str]] = {
    "more blocks": (config_with(DIT_CONFIG, num_layers=3), "its weights are of 2 blocks"),
    "absurd depth": (config_with(DIT_CONFIG, num_layers=10**9), r"num_layers of .* 1 \.\.\. 1024"),
    "absurd grid": (config_with(DIT_CONFIG, sample_size=8192), "256 patches a side"),
    "width of text": (config_with(DIT_CONFIG, attention_head_dim="aaaa"), "attention_head_dim of"),
    "repeated text": (
        config_with(DIT_CONFIG, num_attention_heads=10**10, attention_head_dim="aaaa"),
        "num_attention_heads of .* must be",
    ),
    "other activation": (config_with(DIT_CONFIG, activation_fn="geglu"), "activation_fn"),
    "no heads": (config_with(DIT_CONFIG, num_attention_heads=None), "is no DiT's"),
    "foreign autoencoder": (config_with(VAE_CONFIG, _class_name="VQModel"), "names the class"),
    "deep autoencoder": (config_with(VAE_CONFIG, layers_per_block=10**9), "more than any network"),
    "false mark": (marked, "are marked"),
}


@pytest.mark.parametrize("kind", DIT_DAMAGE)
def test_damaged_dit_is_named(kind: str, dit_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(dit_folder, tmp_path)
    damage, message = DIT_DAMAGE[kind]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        genlab.convert(folder)


def test_folders_of_files_formats_are_refused(ddpm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; the format 'edm' is one of files"):
        genlab.convert(ddpm_folder, "edm")
    with pytest.raises(CheckpointError, match="holds no model of diffusers"):
        genlab.convert(tmp_path, "diffusers")
    with pytest.raises(ConfigError, match="num_steps must be a whole number"):
        genlab.convert(ddpm_folder, config={"num_steps": 0})


def test_autoencoder_is_found_in_a_pipeline(dit_folder: Path) -> None:
    found = read_autoencoder(dit_folder)
    assert found.sha256() == read_autoencoder(dit_folder / "vae").sha256()
    with pytest.raises(CheckpointError, match="names the class 'DiTTransformer2DModel'"):
        read_autoencoder(dit_folder / "transformer")
