"""guided-diffusion's files: what their shapes tell, what the flags must say, what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import genlab
from genlab.checkpoints.conversion import guess_format
from genlab.cli import main
from genlab.diffusion.condition import Condition
from genlab.errors import CheckpointError, ConfigError, LabelError
from genlab.generators import DiffusionGenerator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, ADMUNet
from genlab.samplers.guidance.classifier import class_gradient

UNET: dict[str, Any] = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 6,
    "label_dim": 5,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 2,
    "attn_resolutions": [8],
    "num_head_channels": 16,
}
FLAGS = {"image_size": 16, "num_head_channels": 16}


def _filled(network: Any) -> Any:
    torch.manual_seed(0)
    for parameter in network.parameters():  # layers that begin at 0 would hide a mistake
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def write_unet(folder: Path, **changes: Any) -> tuple[Path, ADMUNet]:
    network = _filled(ADMUNet(**{**UNET, **changes}))
    torch.save(network.state_dict(), folder / "model.pt")
    return folder / "model.pt", network


def write_classifier(folder: Path, **changes: Any) -> tuple[Path, ADMClassifier]:
    kept = {k: v for k, v in UNET.items() if k not in ("out_channels", "label_dim")}
    network = _filled(ADMClassifier(**{**kept, "num_classes": 5, **changes}))
    torch.save(network.state_dict(), folder / "classifier.pt")
    return folder / "classifier.pt", network


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_shift": False, "label_dim": 0},
        {"out_channels": 3},
        {"resblock_updown": False},
        {"resblock_updown": False, "conv_resample": False, "channel_mult": [1, 1, 2]},
        {"model_channels": 64, "channel_mult": [0.5, 1], "attn_resolutions": [16, 8]},
        {"super_resolution": True, "channel_mult": [1], "attn_resolutions": []},
        {"in_channels": 1, "out_channels": 2},
    ],
    ids=str,
)
@torch.no_grad()
def test_architecture_is_read_off_the_shapes(changes: dict[str, Any], tmp_path: Path) -> None:
    file, network = write_unet(tmp_path, **changes)
    generator = genlab.convert(file, config=FLAGS)
    assert isinstance(generator, DiffusionGenerator)
    config: Any = generator.network.config
    for name, value in {**UNET, **changes}.items():
        assert list(config[name]) == value if isinstance(value, list) else config[name] == value
    x = torch.randn(2, network.config["in_channels"], 16, 16)
    beside = {"low_res": x[:, :, ::2, ::2]} if network.super_resolution else {}
    t = torch.tensor([3.0, 800.0])
    torch.testing.assert_close(generator.network(x, t, **beside), network(x, t, **beside))


@torch.no_grad()
def test_scripts_and_constructors_are_understood_alike(tmp_path: Path) -> None:
    """Text in pixels, a list in factors of downsampling; -1 for what is not given."""
    file, _ = write_unet(tmp_path)
    scripts = {
        **FLAGS,
        "num_channels": 32,
        "num_res_blocks": 2,
        "channel_mult": "1,2",
        "attention_resolutions": "8",
        "num_heads": -1,
        "class_cond": True,
        "learn_sigma": True,
        "diffusion_steps": 400,
        "rescale_timesteps": True,
        "timestep_respacing": "ddim25",
        "use_fp16": True,
    }
    constructors = {
        "cls": "UNetModel",
        "kwargs": {
            **FLAGS,
            "num_heads_upsample": 4,  # overruled by num_head_channels
            "model_channels": 32,
            "attention_resolutions": [2],
            "channel_mult": [1, 2],
            "num_classes": 5,
        },
    }
    by_script = genlab.convert(file, "guided-diffusion", scripts)
    by_constructor = genlab.convert(file, "guided-diffusion", constructors)
    assert isinstance(by_script, DiffusionGenerator)
    configs: list[Any] = [g.network.config for g in (by_script, by_constructor)]
    assert {**configs[0]} == {**configs[1]}
    assert by_script.preconditioning.to_config() == {
        "name": "discrete",
        "schedule": "linear",
        "T": 400,
        "prediction": "epsilon",
        "variance": "learned_range",
        "rescale_timesteps": True,
        "interpolate": False,
        "nearest_in_log": False,
        "interpolate_in_log": False,
        "zero_terminal_snr": False,
    }
    assert by_script.sampler.config["solver"] == {"name": "ddim", "clip": True}
    assert by_script.sampler.config["schedule"] == {"name": "respaced", "steps": "ddim25"}
    images = by_script.sample([0, 1], [0, 4], {"schedule": {"num_steps": 4}})
    assert images.shape == (2, 3, 16, 16)
    by_script.save_pretrained(tmp_path / "folder")
    again = genlab.load(tmp_path / "folder")
    assert torch.equal(again.sample([0, 1], [0, 4], {"schedule": {"num_steps": 4}}), images)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_classifier_becomes_a_folder(pool: str, tmp_path: Path) -> None:
    file, network = write_classifier(tmp_path, pool=pool)
    assert guess_format(file) == "guided-diffusion-classifier"
    flags = {**FLAGS, "classifier_pool": pool}
    if pool != "attention":  # whose table of positions tells the size of the last feature map
        flags["classifier_depth"] = 2
    classifier = genlab.convert(file, config=flags)
    assert isinstance(classifier, NoisyClassifier)
    assert classifier.num_classes == 5
    classifier.changed(class_names=list("abcde")).save_pretrained(tmp_path / "folder")
    again = NoisyClassifier.from_pretrained(tmp_path / "folder")
    assert again.class_names == tuple("abcde")
    x, sigma = torch.randn(2, 3, 16, 16), classifier.preconditioning.levels
    assert sigma is not None
    scaled = x * (1 + sigma[300] ** 2) ** -0.5
    expected = network(scaled.float(), torch.full((2,), 300.0))
    torch.testing.assert_close(again(x, sigma[300]), expected)


def test_command_writes_a_classifier_that_guides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = write_unet(tmp_path)
    judge, _ = write_classifier(tmp_path)
    for file in (model, judge):
        out = str(tmp_path / file.stem)
        assert main(["convert", str(file), "-o", out, "image_size=16", "num_head_channels=16"]) == 0
    said = capsys.readouterr().out
    assert "ADMClassifier" in said
    assert "5 classes" in said
    card = (tmp_path / "classifier/README.md").read_text()
    assert "tags: [genlab, image-classification, noisy-classifier]" in card

    generator = genlab.load(tmp_path / "model")
    guidance = {"name": "classifier", "classifier": str(tmp_path / "classifier"), "scale": 5.0}
    few = {"schedule": {"num_steps": 3}}
    plain = generator.sample([0, 1], [2, 3], few)
    guided = generator.sample([0, 1], [2, 3], {**few, "guidance": [guidance]})
    assert guided.isfinite().all()
    assert not torch.equal(plain, guided)
    with pytest.raises(CheckpointError, match="holds no classifier of noisy images"):
        NoisyClassifier.from_pretrained(tmp_path / "model")
    assert main(["sample", str(tmp_path / "classifier"), "-o", str(tmp_path / "out")]) == 2
    assert "is a classifier of noisy images" in capsys.readouterr().err


def test_model_without_classes_is_guided_to_them(tmp_path: Path) -> None:
    file, _ = write_unet(tmp_path, label_dim=0)
    generator = genlab.convert(file, config=FLAGS)
    assert isinstance(generator, DiffusionGenerator)
    classifier = genlab.convert(write_classifier(tmp_path)[0], config=FLAGS)
    guidance = [{"name": "classifier", "classifier": classifier, "scale": 5.0}]
    few: dict[str, Any] = {"schedule": {"num_steps": 3}, "guidance": guidance}
    a, b = (generator.sample([0], [label], few) for label in (0, 4))
    assert not torch.equal(a, b)
    [batch] = generator.stream([0, 1], sampler=few)
    assert batch.labels is not None  # drawn from the classifier's
    pipeline: Any = genlab.GenLabPipeline.from_generator(generator)
    pipeline.set_progress_bar_config(disable=True)
    seeded = [torch.Generator().manual_seed(0)]
    drawn = pipeline(class_labels=4, sampler=few, generator=seeded, output_type="pt").images
    torch.testing.assert_close(drawn, b / 2 + 0.5)
    with pytest.raises(LabelError):
        generator.sample([0], [0])
    with pytest.raises(LabelError):
        generator.sample([0], [5], few)


def test_command_guides_a_model_without_classes_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    genlab.convert(write_unet(tmp_path, label_dim=0)[0], config=FLAGS).save_pretrained("model")
    classifier = genlab.convert(write_classifier(tmp_path)[0], config=FLAGS)
    assert isinstance(classifier, NoisyClassifier)
    classifier.save_pretrained("judge")
    guidance = "sampler.guidance=[{name: classifier, classifier: ./judge, scale: 5}]"
    draw = ["sample", "./model", "-o", "out", "--seeds", "0-1", "--steps", "2", guidance]
    assert main([*draw, "--labels", "balanced"]) == 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["labels"] == [0, 1]
    assert main([*draw, "--labels", "balanced"]) == 0  # all there already
    assert main([*draw, "--labels", "3,4", "--overwrite"]) == 0

    with torch.no_grad():
        next(classifier.network.parameters()).add_(1)
    classifier.save_pretrained("judge")
    assert main([*draw, "--labels", "3,4"]) == 2  # the images there followed another one


def test_gradient_of_a_class_against_differences(tmp_path: Path) -> None:
    file, _ = write_classifier(tmp_path)
    classifier = genlab.convert(file, config=FLAGS)
    assert isinstance(classifier, NoisyClassifier)
    torch.manual_seed(1)
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, -1])
    sigma = torch.tensor([0.4, 2.0])
    gradient = class_gradient(classifier, x, sigma, labels)
    assert float(gradient[1].abs().max()) == 0  # the null class is not guided
    direction = gradient[0] / gradient[0].norm()
    h = 0.05
    with torch.no_grad():
        ends = [
            classifier(x[:1] + s * h * direction, sigma[:1]).log_softmax(1)[0, 3] for s in (1, -1)
        ]
    slope = float(ends[0] - ends[1]) / (2 * h)
    assert slope == pytest.approx(float(gradient[0].norm()), rel=0.02)


def test_super_resolution_goes_through_the_denoiser(tmp_path: Path) -> None:
    file, _ = write_unet(tmp_path, super_resolution=True)
    generator = genlab.convert(file, config={"large_size": 16, "small_size": 8, **FLAGS})
    assert isinstance(generator, DiffusionGenerator)
    small = torch.rand(1, 3, 8, 8)
    x, sigma = torch.randn(1, 3, 16, 16), torch.tensor(1.0)
    condition = Condition(labels=torch.tensor([2]), low_res=small)
    with torch.no_grad():
        a = generator.denoiser(x, sigma, condition)
        b = generator.denoiser(x, sigma, Condition(labels=torch.tensor([2]), low_res=1 - small))
        both = Condition.cat([condition, condition])
        two = generator.denoiser(torch.cat([x, x]), sigma, both)
    assert not torch.equal(a, b)
    torch.testing.assert_close(two[1:], a)
    with pytest.raises(ConfigError, match="give the smaller ones as low_res"):
        generator.denoiser(x, sigma, Condition(labels=torch.tensor([2])))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (None, "give the official flags"),
        ({}, "needs image_size"),
        ({"image_size": 16}, "needs num_heads or num_head_channels"),
        ({**FLAGS, "num_chanels": 32}, "did you mean 'num_channels'"),
        ({**FLAGS, "attention_resolutions": "8;4"}, "attention_resolutions must be numbers"),
        ({**FLAGS, "learn_sigma": False}, "contradicts learn_sigma"),
        ({**FLAGS, "in_channels": 2}, "neither in_channels = 2 nor twice that"),
        ({**FLAGS, "cls": "UNet"}, "no class 'UNet'"),
        ({**FLAGS, "noise_schedule": "sqrt"}, "one of linear, cosine"),
    ],
    ids=str,
)
def test_wrong_flags_are_named(
    flags: Mapping[str, Any] | None, message: str, tmp_path: Path
) -> None:
    file, _ = write_unet(tmp_path)
    with pytest.raises(ConfigError, match=message):
        genlab.convert(file, "guided-diffusion", flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({**FLAGS, "num_channels": 64}, r"time_embed.0.weight is \[128, 32\] where"),
        ({**FLAGS, "num_channels": 8192, "channel_mult": [60, 60]}, "does not fit"),  # terabytes
        ({**FLAGS, "num_head_channels": 48}, "cannot be split evenly"),
        ({**FLAGS, "attention_resolutions": "16,8"}, "missing: input_blocks"),
        ({**FLAGS, "image_size": 9}, "cannot be halved"),
    ],
    ids=str,
)
def test_flags_that_contradict_the_file_are_named(
    flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file, _ = write_unet(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        genlab.convert(file, config=flags)


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("name", ["out.2.weight", "middle_block.1.qkv.bias", "time_embed.0.weight"])
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    _, network = write_unet(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(_without(network.state_dict(), name), file)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        genlab.convert(file, config=FLAGS)


@pytest.mark.parametrize("depth", [-1, 0, "2"])
def test_an_impossible_classifier_depth_is_named(depth: Any, tmp_path: Path) -> None:
    file, _ = write_classifier(tmp_path)
    with pytest.raises(ConfigError, match=r"num_res_blocks .* a whole number in 1 \.\.\. 64"):
        genlab.convert(file, config={**FLAGS, "classifier_depth": depth})


def test_a_depth_of_more_blocks_than_there_are_is_named(tmp_path: Path) -> None:
    file, _ = write_classifier(tmp_path, resblock_updown=True, pool="adaptive")
    with pytest.raises(CheckpointError, match=r"do not make|does not fit"):
        genlab.convert(
            file, config={**FLAGS, "classifier_depth": 64, "classifier_pool": "adaptive"}
        )


def test_a_block_of_five_thousand_digits_is_named(tmp_path: Path) -> None:
    _, network = write_unet(tmp_path)
    file = tmp_path / "model.pt"
    torch.save({**network.state_dict(), f"input_blocks.{'9' * 5000}.0.bias": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="unexpected: input_blocks"):
        genlab.convert(file, config=FLAGS)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    file, network = write_unet(tmp_path)
    state = network.state_dict()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        genlab.convert(file, "guided-diffusion", FLAGS)
    torch.save({**state, "extra": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="unexpected: extra"):
        genlab.convert(file, config=FLAGS)
    torch.save({**state, "out.2.weight": torch.zeros(6, 32)}, file)
    with pytest.raises(CheckpointError, match=r"out.2.weight is \[6, 32\]"):
        genlab.convert(file, config=FLAGS)
    torch.save({"input_blocks.0.0.weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match="no usable time_embed"):
        genlab.convert(file, "guided-diffusion", FLAGS)
