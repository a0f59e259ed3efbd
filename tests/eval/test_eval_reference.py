"""References: computed, cached, and read from the files of other projects."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_extractor import TinyExtractor

from genlab.data.writing.writers import write_npz
from genlab.errors import DataError, EvaluationError, OutputError
from genlab.eval.metrics.base import FeatureSet, Need
from genlab.eval.moments import Moments
from genlab.eval.references.building import (
    check_extractor,
    compute_reference,
    find_reference,
    with_fewer_rows,
)
from genlab.eval.references.files import (
    Reference,
    is_statistics,
    read_reference,
    write_reference,
)
from genlab.eval.samples import StoredImages

MOMENTS, ROWS = Need("moments", "features"), Need("rows", "features")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, [i % 3 for i in range(30)])
    return tmp_path / "real.npz"


def statistics(dim: int, seed: int = 0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    return Moments.of(torch.randn(3 * dim, dim, dtype=torch.float64, generator=generator))


def test_it_is_computed_once_and_cached_by_content(data: Path) -> None:
    seen: list[int] = []

    def find(extractor: TinyExtractor) -> Reference:
        return find_reference(
            str(data), extractor, [MOMENTS, ROWS], on_progress=lambda n, total: seen.append(n)
        )

    first = find(TinyExtractor())
    assert sum(seen) == 30
    assert first.features.count == 30
    assert first.features.labels is not None
    again = find(TinyExtractor())
    assert sum(seen) == 30  # from the cache
    assert first.identity == again.identity
    assert torch.equal(first.features.rows["features"], again.features.rows["features"])
    assert torch.equal(
        first.features.moments["features"].cov, again.features.moments["features"].cov
    )
    find(TinyExtractor(seed=1))
    assert sum(seen) == 60  # other weights never meet an old entry


def test_identity_is_that_of_the_pixels(data: Path, tmp_path: Path) -> None:
    with np.load(data) as stored:
        pixels = stored["arr_0"][::-1]
    write_npz(tmp_path / "turned.npz", iter(pixels), pixels.shape, None)
    ours = find_reference(str(data), TinyExtractor(), [MOMENTS]).identity
    theirs = find_reference(str(tmp_path / "turned.npz"), TinyExtractor(), [MOMENTS]).identity
    assert ours["pixels_sha256"] == theirs["pixels_sha256"]
    pixels = pixels.copy()
    pixels[3, 0, 0, 0] ^= 1
    write_npz(tmp_path / "changed.npz", iter(pixels), pixels.shape, None)
    other = find_reference(str(tmp_path / "changed.npz"), TinyExtractor(), [MOMENTS]).identity
    assert other["pixels_sha256"] != ours["pixels_sha256"]


def test_own_layout_goes_round(data: Path, tmp_path: Path) -> None:
    made = compute_reference(StoredImages(data), TinyExtractor(), [MOMENTS, ROWS], name="real")
    write_reference(tmp_path / "real.safetensors", with_fewer_rows(made, 10))
    read = find_reference(str(tmp_path / "real.safetensors"), TinyExtractor(), [MOMENTS, ROWS])
    assert read.features.count == 30
    assert read.features.rows["features"].shape == (10, 8)
    assert read.identity["rows"] == 10
    assert read.image_size == 8
    chosen = torch.linspace(0, 29, 10, dtype=torch.float64).round().long()
    assert torch.equal(read.features.rows["features"], made.features.rows["features"][chosen])


def test_edm_layout_goes_round(tmp_path: Path) -> None:
    moments = statistics(5)
    made = Reference(
        features=FeatureSet(count=15, moments={"features": moments}), identity={}, extractor=None
    )
    write_reference(tmp_path / "edm.npz", made, "edm")
    with np.load(tmp_path / "edm.npz") as stored:
        assert sorted(stored.files) == ["mu", "sigma"]
        assert stored["sigma"].dtype == np.float64
        assert np.allclose(stored["sigma"], moments.cov, rtol=1e-12)
    read = read_reference(tmp_path / "edm.npz")
    assert torch.allclose(read.features.moments["features"].cov, moments.cov, rtol=1e-12)
    assert read.identity["count"] is None


def test_adm_layout_goes_round(data: Path, tmp_path: Path) -> None:
    features = FeatureSet(
        count=30, moments={"features": statistics(5), "spatial": statistics(4, seed=1)}
    )
    images = StoredImages(data)
    made = Reference(features=features, identity={}, extractor=None, images=images)
    write_reference(tmp_path / "adm.npz", made, "adm")
    with np.load(tmp_path / "adm.npz") as stored:
        assert sorted(stored.files) == ["arr_0", "mu", "mu_s", "sigma", "sigma_s"]
        assert stored["arr_0"].shape == (30, 8, 8, 3)
    read = read_reference(tmp_path / "adm.npz")
    assert set(read.features.moments) == {"features", "spatial"}
    assert read.images is not None
    assert read.images.count == 30


def test_foreign_statistics_need_inception(tmp_path: Path) -> None:
    made = Reference(
        features=FeatureSet(count=15, moments={"features": statistics(5)}),
        identity={},
        extractor=None,
    )
    write_reference(tmp_path / "edm.npz", made, "edm")
    with pytest.raises(EvaluationError, match=r"Inception's 2048 features.*tiny"):
        find_reference(str(tmp_path / "edm.npz"), TinyExtractor(), [MOMENTS])


def test_another_extractor_is_named(data: Path) -> None:
    made = compute_reference(StoredImages(data), TinyExtractor(), [MOMENTS], name="real")
    with pytest.raises(EvaluationError, match=r"weights_sha256 is '0+' there and '0+1' here"):
        check_extractor(made, TinyExtractor(seed=1), "real")


def test_what_is_lacking_is_named(data: Path, tmp_path: Path) -> None:
    made = compute_reference(StoredImages(data), TinyExtractor(), [MOMENTS], name="real")
    write_reference(tmp_path / "real.safetensors", made)
    with pytest.raises(EvaluationError, match="lacks the rows features"):
        find_reference(str(tmp_path / "real.safetensors"), TinyExtractor(), [MOMENTS, ROWS])


def test_an_archive_whose_names_are_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\u00e4.npy", b"")
    path.write_bytes(path.read_bytes().replace(b"\xc3\xa4.npy", b"\xcc\xcc.npy"))
    for read in (is_statistics, read_reference):
        with pytest.raises((EvaluationError, DataError), match=r"stats\.npz"):
            read(path)


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.npz"])
def test_a_truncated_file_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    made = compute_reference(StoredImages(data), TinyExtractor(), [MOMENTS], name="real")
    write_reference(tmp_path / name, made, "edm" if name.endswith("npz") else "genlab")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvaluationError, match=name):
        find_reference(str(tmp_path / name), TinyExtractor(), [MOMENTS])


def test_pickles_in_an_npz_are_never_loaded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(1))
    (tmp_path / "bad.npz").write_bytes(buffer.getvalue())
    with pytest.raises(EvaluationError, match=r"bad\.npz cannot be read as npz"):
        read_reference(tmp_path / "bad.npz")


def test_wrong_shapes_and_values_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(EvaluationError, match="no mean and covariance"):
        read_reference(tmp_path / "shape.npz")
    np.savez(tmp_path / "nan.npz", mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(EvaluationError, match="not finite"):
        read_reference(tmp_path / "nan.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(EvaluationError, match=r"holds no statistics .* but weights"):
        read_reference(tmp_path / "other.npz")


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(EvaluationError, match=r"neither bundled .* nor a path"):
        find_reference("nowhere", TinyExtractor(), [MOMENTS])


def test_npz_layouts_want_an_npz_name(data: Path, tmp_path: Path) -> None:
    made = compute_reference(StoredImages(data), TinyExtractor(), [MOMENTS], name="real")
    with pytest.raises(OutputError, match=r"end in \.npz"):
        write_reference(tmp_path / "real.txt", made, "edm")
