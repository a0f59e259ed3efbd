"""Folders and zips: what they mean, what is refused, and that images come back as written."""

import io
import multiprocessing
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import class_files, encoded, manifest, picture, write_folder, write_zip

from genlab.data.sources import containers
from genlab.data.sources.base import ImageSource
from genlab.data.sources.opening import open_source
from genlab.errors import DataError


def labels(source: ImageSource) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


def read_plane(source: ImageSource, index: int) -> np.ndarray:
    return source.read(index).transpose(1, 2, 0)


# --- folders ----------------------------------------------------------------------------------


def test_class_folders_are_numbered_by_sorted_name(tmp_path: Path) -> None:
    files = class_files(("zebra", "ant", "Cat"), count=2)
    source = open_source(write_folder(tmp_path / "set", files))
    assert source.class_names == ("Cat", "ant", "zebra")  # as text, the way of torchvision
    assert labels(source) == [0, 0, 1, 1, 2, 2]
    assert [source.name(i) for i in range(2)] == ["Cat/0.png", "Cat/1.png"]
    assert source.num_classes == 3
    expected = np.asarray(Image.open(io.BytesIO(files["zebra/1.png"])))
    assert np.array_equal(read_plane(source, 5), expected)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = open_source(
        write_folder(tmp_path, {f"{i}.png": encoded(picture(i)) for i in range(3)})
    )
    assert source.labels is None
    assert source.class_names is None
    assert source.num_classes == 0


def test_dataset_json_decides_whatever_the_folders_say(tmp_path: Path) -> None:
    files = {f"0000{i}/img0000000{i}.png": encoded(picture(i)) for i in range(3)}
    pairs = [[name, 2 - i] for i, name in enumerate(sorted(files))]
    source = open_source(write_folder(tmp_path, {**files, "dataset.json": manifest(pairs)}))
    assert labels(source) == [2, 1, 0]
    # Folders that match classes one to one are taken for their names, whatever they are.
    assert source.num_classes == 3


def test_dataset_json_names_its_classes(tmp_path: Path) -> None:
    files = {"a.png": encoded(picture(0)), "b.png": encoded(picture(1))}
    text = manifest({"a.png": 1, "b.png": 0}, class_names=["sneaker", "bag", "shirt"])
    source = open_source(write_folder(tmp_path, {**files, "dataset.json": text}))
    assert labels(source) == [1, 0]
    assert source.class_names == ("sneaker", "bag", "shirt")
    assert source.num_classes == 3  # a class may have no image


def test_labels_null_means_unlabelled(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "x/a.png": encoded(picture(0)),
        "dataset.json": manifest(None),
    }
    assert open_source(write_folder(tmp_path, files)).labels is None


def test_numbered_shards_are_not_classes(tmp_path: Path) -> None:
    for style in ("{:05d}/img{:08d}.png", "{:06d}000/{:09d}.png"):
        folder = tmp_path / style[:6].strip("{:}")
        files = {style.format(i // 1000, i): encoded(picture(i)) for i in (0, 1, 1000, 2001)}
        source = open_source(write_folder(folder, files))
        assert source.labels is None
        assert [f.code for f in source.findings] == ["shards"]


def test_splits_are_opened_by_name(tmp_path: Path) -> None:
    files = {f"train/{k}": v for k, v in class_files(count=2).items()}
    files |= {f"val/{k}": v for k, v in class_files(count=1).items()}
    root = write_folder(tmp_path, files)
    assert len(open_source(root)) == 4
    assert open_source(root).class_names == ("bag", "coat")
    assert len(open_source(root, "test")) == 2
    with pytest.raises(DataError, match="no split 'test'"):
        open_source(root / "train", "test")


def test_odd_files_and_empty_folders_are_passed_over(tmp_path: Path) -> None:
    junk: dict[str, bytes | str] = {
        ".DS_Store": b"x",
        "bag/._0.png": b"x",
        "__MACOSX/bag/0.png": b"x",
        "notes.txt": b"x",
    }
    source = open_source(write_folder(tmp_path, {**class_files(), **junk, "dress/": b""}))
    assert len(source) == 6
    assert source.class_names == ("bag", "coat")
    assert [f.code for f in source.findings] == ["empty-class"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", class_files(("bag",)))
    root = write_folder(tmp_path / "set", class_files(("coat",)))
    (root / "bag").symlink_to(elsewhere / "bag", target_is_directory=True)
    (root / "coat" / "loop").symlink_to(root, target_is_directory=True)
    source = open_source(root)
    assert source.class_names == ("bag", "coat")
    assert len(source) == 6


WRONG_LAYOUTS: dict[str, tuple[dict[str, bytes | str], str]] = {
    "one folder too deep": (
        {f"data/{k}": v for k, v in class_files().items()},
        r"too deep, in data/ \(which holds bag, coat\)",
    ),
    "beside folders": ({**class_files(), "stray.png": encoded(picture(9))}, "beside the folders"),
    "manifest too deep": (
        {"d/a.png": encoded(picture(0)), "d/dataset.json": manifest([["a.png", 0]])},
        "dataset.json lies in d/",
    ),
    "nothing": ({"readme.txt": b"hello"}, "no images"),
    "not JSON": ({"a.png": encoded(picture(0)), "dataset.json": "{"}, "not JSON"),
    "no labels key": ({"a.png": encoded(picture(0)), "dataset.json": "[]"}, 'no "labels"'),
    "missing entry": (
        {"a.png": encoded(picture(0)), "b.png": b"", "dataset.json": manifest([["a.png", 0]])},
        "no label for 1 of 2 images: b.png",
    ),
    "text label": (
        {"a.png": encoded(picture(0)), "dataset.json": manifest([["a.png", "bag"]])},
        "gives a.png the label 'bag'",
    ),
    "true is not 1": (
        {"a.png": encoded(picture(0)), "dataset.json": manifest([["a.png", True]])},
        "the label True",
    ),
    "negative": (
        {"a.png": encoded(picture(0)), "dataset.json": manifest([["a.png", -1]])},
        "the label -1",
    ),
    "two labels": (
        {"a.png": encoded(picture(0)), "dataset.json": manifest([["a.png", 0], ["a.png", 1]])},
        "two labels, 0 and 1",
    ),
    "too few names": (
        {
            "a.png": encoded(picture(0)),
            "dataset.json": manifest([["a.png", 3]], class_names=["x"]),
        },
        "names only 1 classes",
    ),
}


@pytest.mark.parametrize("name", WRONG_LAYOUTS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_wrong_layouts_are_refused_with_a_cure(tmp_path: Path, name: str, packed: bool) -> None:
    files, sentence = WRONG_LAYOUTS[name]
    path = (
        write_zip(tmp_path / "set.zip", files) if packed else write_folder(tmp_path / "set", files)
    )
    with pytest.raises(DataError, match=sentence) as caught:
        open_source(path)
    assert (
        ";" in str(caught.value) or "must be" in str(caught.value) or "reads" in str(caught.value)
    )


# --- zips -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_of_every_kind(tmp_path: Path, kind: str, mode: str, compression: int) -> None:
    pillow = {"jpg": "jpeg"}.get(kind, kind)
    options = {"lossless": True} if kind == "webp" else {}
    files = {f"{i}.{kind}": encoded(picture(i, mode=mode), pillow, **options) for i in range(3)}
    pairs = [[name, i % 2] for i, name in enumerate(files)]
    path = write_zip(tmp_path / "set.zip", {**files, "dataset.json": manifest(pairs)}, compression)
    source = open_source(path)
    assert labels(source) == [0, 1, 0]
    expected = np.asarray(Image.open(io.BytesIO(files[f"1.{kind}"])))
    expected = expected[..., None] if expected.ndim == 2 else expected
    assert np.array_equal(read_plane(source, 1), expected)


def test_backslashes_in_names_are_folders(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in class_files().items()}
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # past the constructor, which would mend it on Windows
            archive.writestr(info, data)
    source = open_source(path)
    assert source.class_names == ("bag", "coat")
    assert source.read(0).shape == (3, 8, 8)


def test_names_that_climb_out_are_only_names(tmp_path: Path) -> None:
    names = ["../../evil.png", "/etc/b.png", "./etc/c.png", "d/../../e.png"]
    files = {name: encoded(picture(i)) for i, name in enumerate(names)}
    source = open_source(write_zip(tmp_path / "set.zip", files))
    assert [source.name(i) for i in range(len(source))] == ["etc/b.png", "etc/c.png"]
    assert source.read(0).shape == (3, 8, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.zip"]  # nothing was unpacked


def test_an_open_zip_travels_to_other_processes(tmp_path: Path) -> None:
    source = open_source(write_zip(tmp_path / "set.zip", class_files()))
    first = source.read(0)  # the handle is open now
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
    assert np.array_equal(again.read(0), first)
    assert b"ZipFile" not in pickle.dumps(source)


def _read_many(source: ImageSource, queue: "multiprocessing.Queue[bytes]") -> None:
    queue.put(b"".join(source.read(i).tobytes() for i in range(len(source)) for _ in range(5)))


def test_forked_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = open_source(write_zip(tmp_path / "set.zip", class_files(count=10)))
    expected = b"".join(source.read(i).tobytes() for i in range(len(source)) for _ in range(5))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read_many, args=(source, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert results == [expected, expected]


@settings(deadline=None, max_examples=40)
@given(
    cut=st.floats(0, 0.999), flip=st.none() | st.tuples(st.floats(0, 0.999), st.integers(1, 255))
)
def test_damage_anywhere_is_an_error_and_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory,
    cut: float,
    flip: tuple[float, int] | None,
) -> None:
    """A zip cut anywhere, or with one byte changed, gives images or a DataError."""
    path = tmp_path_factory.mktemp("cut") / "set.zip"
    write_zip(path, {**class_files(count=1), "dataset.json": manifest(None)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    if flip is None:
        del data[int(cut * len(data)) :]
    else:
        data[int(flip[0] * len(data))] ^= flip[1]
    path.write_bytes(data)
    with suppress(DataError):  # anything else fails the test
        source = open_source(path)
        for i in range(len(source)):
            assert source.read(i).dtype == np.uint8


def test_a_member_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    """The directory says that the name is UTF-8."""
    path = write_zip(tmp_path / "set.zip", {"\u00e4.png": encoded(picture(0))})
    data = path.read_bytes()
    assert data.count(b"\xc3\xa4.png") == 2
    path.write_bytes(data.replace(b"\xc3\xa4.png", b"\xcc\xcc.png"))
    with pytest.raises(DataError, match="is not a zip or is truncated"):
        open_source(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"a.png": encoded(picture(0))})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag "encrypted", in the member's header and in the directory
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="password"):
        open_source(path).read(0)


def test_a_member_too_large_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "MAX_MEMBER_BYTES", 1000)
    files = {"a.png": encoded(picture(0, (64, 64)))}
    for path in (write_zip(tmp_path / "s.zip", files), write_folder(tmp_path / "s", files)):
        with pytest.raises(DataError, match="more than"):
            open_source(path).read(0)


# --- images -----------------------------------------------------------------------------------


def one(tmp_path: Path, data: bytes, name: str = "a.png") -> ImageSource:
    return open_source(write_folder(tmp_path, {name: data}))


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4)],
)
def test_modes_have_their_channels(tmp_path: Path, mode: str, channels: int) -> None:
    image = picture(3).convert(mode) if mode != "LA" else picture(3).convert("L").convert("LA")
    pixels = one(tmp_path, encoded(image)).read(0)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == np.uint8


def test_a_palette_with_a_clear_colour_has_alpha(tmp_path: Path) -> None:
    image = picture(0).convert("P")
    pixels = one(tmp_path, encoded(image, transparency=image.getpixel((0, 0)))).read(0)
    assert pixels.shape == (4, 8, 8)
    assert pixels[3, 0, 0] == 0


def test_cmyk_is_read_as_rgb(tmp_path: Path) -> None:
    data = encoded(picture(0).convert("CMYK"), "jpeg")
    assert one(tmp_path, data, "a.jpg").read(0).shape == (3, 8, 8)


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    image = picture(0, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise by 90 degrees
    pixels = one(tmp_path, encoded(image, exif=exif)).read(0)
    assert pixels.shape == (3, 6, 4)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is an empty file"),
        (b"not an image", "is not an image"),
        (encoded(picture(0, (64, 64)))[:3000], "is a damaged image"),
        (encoded(picture(0, (64, 64)), "jpeg")[:900], "is a damaged image"),
    ],
)
def test_broken_images_are_named(tmp_path: Path, data: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=rf"a\.png {sentence}"):
        one(tmp_path, data).read(0)


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_what_is_no_data_set_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(DataError, match=name):
        open_source(tmp_path / name)


# --- real data --------------------------------------------------------------------------------


def test_cifar_10_has_its_published_statistics(shared: Path) -> None:
    """All images of the first half of the test set; the whole set's published means are near."""
    path = shared / "data" / "cifar10-test-a.zip"
    if not path.exists():
        pytest.skip("no CIFAR-10 in the folder of shared data")
    source = open_source(path)
    assert source.class_names is not None
    assert source.class_names[3] == "cat"
    assert np.bincount(np.array(labels(source))).tolist() == [500] * 10
    images = np.stack([source.read(i) for i in range(len(source))])
    assert images.shape == (5000, 3, 32, 32)
    mean = images.mean((0, 2, 3), dtype=np.float64) / 255
    # The channel means of 5,000 of the 10,000 images; 0.0045 is three standard errors.
    assert mean == pytest.approx([0.49421428, 0.48513139, 0.45040909], abs=0.0045)
