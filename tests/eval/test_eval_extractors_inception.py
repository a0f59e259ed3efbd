"""Inception against torch-fidelity's own extractor, on random weights in the whole architecture."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_inception import random_inception, up_to
from range_server import serving
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from genlab.data.dataset import ImageDataset
from genlab.errors import CheckpointError, DownloadError, EvaluationError, UnknownNameError
from genlab.eval.extractors import inception as module
from genlab.eval.extractors import inception_weights
from genlab.eval.extractors.base import build_extractor, check_call, exact_float32
from genlab.eval.extractors.inception import Inception, inception_64, inception_192, inception_768
from genlab.eval.extractors.inception_weights import URL_VARIABLE, find_weights
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.files import sha256

ROUNDING = 1e-5
"""Measured: 5e-7. Batch norms are folded and sums are taken in another order, in float32."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_inception()


@pytest.fixture(scope="module")
def full(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("inception")
    torch.save(tensors, folder / "full.pth")
    yield folder / "full.pth"
    shutil.rmtree(folder)  # 96 MB


@pytest.fixture(scope="module")
def partial(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("partial")
    torch.save(up_to(tensors, "Mixed_6e"), folder / "partial.pth")
    yield folder / "partial.pth"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def extractor(full: Path) -> Inception:
    return Inception(full)


def noise(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def relative(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float(((ours - expected).norm(dim=1) / expected.norm(dim=1)).max())


def test_every_output_is_torch_fidelitys(extractor: Inception, full: Path) -> None:
    names = ["64", "192", "768", "2048", "logits_unbiased"]
    published = FeatureExtractorInceptionV3("inception-v3-compat", names, str(full))
    maps: list[Tensor] = []
    published.Mixed_6d.branch1x1.register_forward_hook(lambda *call: maps.append(call[2]))
    assert extractor.outputs == {
        "features": 2048, "logits": 1008, "spatial": 2023, "64": 64, "192": 192, "768": 768
    }  # fmt: skip
    for images in (noise(), noise(1, 20, 27)):
        maps.clear()
        expected = dict(zip(names, published(images), strict=True))
        ours = extractor(images, list(extractor.outputs))
        for output in ("64", "192", "768"):
            assert relative(ours[output], expected[output]) < ROUNDING
        assert relative(ours["features"], expected["2048"]) < ROUNDING
        assert relative(ours["logits"], expected["logits_unbiased"]) < ROUNDING
        spatial = torch.stack([maps[0][:, i] for i in range(7)], dim=-1)  # H, W, C
        assert relative(ours["spatial"], spatial.reshape(len(images), -1)) < ROUNDING
        assert all(rows.dtype == torch.float32 for rows in ours.values())


def test_leading_layers_from_either_file(extractor: Inception, full: Path, partial: Path) -> None:
    images = noise()
    expected = extractor(images, ("64", "192", "768", "spatial"))
    for build, output in ((inception_64, "64"), (inception_192, "192"), (inception_768, "768")):
        for path in (full, partial):
            part = build(path)
            assert torch.equal(part(images)["features"], expected[output])
            assert part.name == f"inception-{output}-custom"
            assert not part.official
            assert part.outputs["features"] == int(output)
    assert torch.equal(part(images, ["spatial"])["spatial"], expected["spatial"])
    assert "logits" not in part.outputs


def test_random_weights_are_never_official(
    extractor: Inception, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extractor.name == "inception-custom"
    assert not extractor.official
    assert extractor.identity() == {
        "name": "inception-custom",
        "weights_sha256": sha256(full),
        "resize": "TensorFlow 1 bilinear to 299x299",
    }
    monkeypatch.setattr(module, "SHA256", sha256(full))
    official = build_extractor("inception", full)
    assert (official.name, official.official) == ("inception", True)
    clean = build_extractor("inception-clean", full)
    assert (clean.name, clean.official) == ("inception-clean", False)


def test_resizes_matter_and_none_is_official_but_one(extractor: Inception, full: Path) -> None:
    images = noise()
    plain = extractor(images)["features"]
    for name in ("clean", "legacy"):
        other = build_extractor(f"inception-{name}", full)
        assert other.name == f"inception-{name}-custom"
        assert relative(other(images)["features"], plain) > 1e-3


def test_threads_and_batches_change_rounding_only(extractor: Inception) -> None:
    images = noise(6)
    together = extractor(images)["features"]
    one_by_one = torch.cat([extractor(image[None])["features"] for image in images])
    assert relative(one_by_one, together) < ROUNDING
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert relative(extractor(images)["features"], together) < ROUNDING
    finally:
        torch.set_num_threads(threads)


def test_lower_precision_outside_stays_outside(extractor: Inception) -> None:
    images = noise(1)
    expected = extractor(images)["features"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(images)["features"], expected)


def test_tensor_float_32_is_off_inside() -> None:
    """The switches are there without a GPU, too."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = True
    try:
        with exact_float32(torch.device("cuda")):
            assert not torch.is_autocast_enabled("cuda")
            if hasattr(backends.cudnn, "conv"):
                assert backends.cudnn.conv.fp32_precision == "ieee"
                assert backends.cuda.matmul.fp32_precision == "ieee"
            else:
                assert not backends.cudnn.allow_tf32
                assert not backends.cuda.matmul.allow_tf32
        assert (True, before[1]) == (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    finally:
        backends.cuda.matmul.allow_tf32 = before[0]


def test_not_a_number_is_not_clipped(full: Path) -> None:
    broken = inception_64(full)
    broken.network.layers["Conv2d_1a_3x3"].weight.data[3, 0, 0, 0] = float("nan")  # type: ignore[operator]
    assert broken(noise(1))["features"].isnan().any()


def test_features_can_be_trained_on(extractor: Inception) -> None:
    rows = extractor(noise(1), ["64"])["64"]
    assert not rows.is_inference()
    weight = torch.ones(64, requires_grad=True)
    (rows @ weight).sum().backward()
    assert weight.grad is not None


def test_wrong_calls_are_refused(extractor: Inception) -> None:
    with pytest.raises(EvaluationError, match=r"uint8 RGB images .* got torch.float32 \(1, 3"):
        check_call(extractor, noise(1).float(), ["features"])
    with pytest.raises(UnknownNameError, match="did you mean 'logits'"):
        extractor(noise(1), ["logit"])


def test_a_partial_file_says_what_it_is_good_for(
    partial: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="this file ends at Mixed_6e; use inception-768"):
        Inception(partial)
    torch.save(up_to(tensors, "Mixed_5d"), tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="ends at Mixed_5d; use inception-192"):
        inception_768(tmp_path / "short.pth")
    torch.save(up_to(tensors, "Conv2d_1a_3x3"), tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="ends at Conv2d_1a_3x3; give the whole file"):
        inception_64(tmp_path / "short.pth")


def test_damaged_and_foreign_files_are_refused(
    partial: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(partial.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        inception_64(path)
    part = up_to(tensors, "Conv2d_4a_3x3")
    faults: dict[str, dict[str, Tensor]] = {
        "missing: Conv2d_2b_3x3.bn.bias": {k: v for k, v in part.items() if "2b_3x3.bn.b" not in k},
        r"Conv2d_1a_3x3.conv.weight is \[4\]": {**part, "Conv2d_1a_3x3.conv.weight": torch.ones(4)},
        "unexpected: AuxLogits.fc.bias": {**part, "AuxLogits.fc.bias": torch.ones(1000)},
        r"fc.bias is \[1000\]": {**part, "fc.bias": torch.ones(1000)},
        "not finite": {**part, "Conv2d_1a_3x3.bn.bias": torch.full((32,), float("inf"))},
        "missing: Conv2d_1a_3x3.conv.weight": {"conv1.weight": torch.ones(3)},
    }  # fmt: skip
    for message, fault in faults.items():
        torch.save(fault, path)
        with pytest.raises(CheckpointError, match=message):
            inception_192(path)
    torch.save({"a": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(CheckpointError, match="never runs"):
        inception_192(path)


def test_weights_are_fetched_once_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"what the official file would hold"
    with serving() as server:
        server.files["/mirror.pth"] = content
        monkeypatch.setenv(URL_VARIABLE, f"{server.url}mirror.pth")
        with pytest.raises(DownloadError, match=r"SHA-256 is .*; put the file at .* mirror"):
            find_weights()
        server.files["/right.pth"] = content
        monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(content).hexdigest())
        path = find_weights(f"{server.url}right.pth")
        assert path.read_bytes() == content
        asked = len(server.requests)
        assert find_weights() == path
        assert len(server.requests) == asked


def test_without_a_network_it_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception_weights, "home", lambda: Path("/nowhere"))
    with serving() as server:
        monkeypatch.setenv(URL_VARIABLE, f"{server.url}gone.pth")
        with pytest.raises(DownloadError, match=f"404.*{URL_VARIABLE} to a mirror"):
            build_extractor("inception")


@pytest.fixture(scope="module")
def official_layers_file(shared: Path) -> Path:
    path = shared / "data" / "weights-inception-2015-12-05-to-mixed6e.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the folder of shared data")
    return path


def first_of_each_class(path: Path, count: int) -> Tensor:
    dataset = ImageDataset(path)
    assert dataset.labels is not None
    rows = [(dataset.labels == label).nonzero()[:count, 0] for label in range(10)]
    return torch.stack([dataset[int(i)][0] for i in torch.cat(rows)])


def test_the_real_weights_give_the_published_features(
    official_layers_file: Path, shared: Path
) -> None:
    extractor = build_extractor("inception-768", official_layers_file)
    assert extractor.name == "inception-768"
    airplane = first_of_each_class(shared / "data" / "cifar10-test-a.zip", 1)[:1]
    found = extractor(airplane)["features"][0, :3]
    # Published with six digits.
    assert torch.allclose(found, torch.tensor([0.020861, 0.098141, 0.192680]), atol=1e-6)


@pytest.mark.slow
def test_the_real_weights_give_the_published_distances(
    official_layers_file: Path, shared: Path
) -> None:
    """1,000 images against 1,000; fewer than 768 features need, as published."""
    extractor = build_extractor("inception-768", official_layers_file)
    layers = {"64": "64", "192": "192", "features": "768"}
    train = first_of_each_class(shared / "data" / "cifar10-train-a.zip", 100)
    test = first_of_each_class(shared / "data" / "cifar10-test-a.zip", 100)

    def moments(images: Tensor) -> dict[str, Moments]:
        found = {output: Moments(extractor.outputs[output]) for output in layers}
        for batch in images.split(50):
            for output, rows in extractor(batch, list(layers)).items():
                found[output].update(rows)
        return found

    reference = moments(train)
    published = {
        "64": (0.028490, 1.148825),
        "192": (0.152500, 6.116718),
        "features": (0.166116, 0.567282),
    }
    for images, which in ((test, 0), (255 - test, 1)):
        for output, rows in moments(images).items():
            distance = frechet_distance(rows, reference[output])
            assert distance == pytest.approx(published[output][which], rel=5e-5), layers[output]
