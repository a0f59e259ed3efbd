"""The order of the images, and how processes share it."""

from pathlib import Path

import pytest
import torch
from tiny_runs import write_slice

from genlab.errors import ConfigError, DataError
from genlab.training.config import DataConfig
from genlab.training.loop.batches import Batches, EpochOrder, Share
from genlab.training.loop.seeds import derive


def test_every_epoch_has_every_image_once() -> None:
    order = EpochOrder(10, seed=3)
    epochs = order(0, 30).reshape(3, 10)
    assert epochs.sort(1).values.tolist() == [list(range(10))] * 3
    assert epochs.unique(dim=0).shape[0] == 3  # shuffled anew


def test_order_does_not_depend_on_how_it_is_read() -> None:
    whole = EpochOrder(7, seed=0)(0, 40)
    parts = [EpochOrder(7, seed=0)(start, 8) for start in range(0, 40, 8)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, EpochOrder(7, seed=1)(0, 40))


def test_processes_share_what_one_process_does_in_rounds() -> None:
    alone = Share(12, processes=1, rank=0, rounds=6)
    shares = [Share(12, processes=3, rank=rank, rounds=2) for rank in range(3)]
    numbers = [number for share in shares for number in share.micro_batches()]
    assert sorted(numbers) == alone.micro_batches() == list(range(6))
    assert {share.micro_size for share in shares} == {alone.micro_size}
    with pytest.raises(ConfigError, match="multiple of 5"):
        Share(12, processes=5, rank=0, rounds=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_disk_are_those_from_memory(
    fashion_mnist: Path, tmp_path: Path, workers: int
) -> None:
    path = str(write_slice(fashion_mnist, tmp_path))
    share = Share(8, processes=2, rank=1, rounds=2)
    memory = Batches(DataConfig(path=path), seed=5).stream(3, 6, share)
    config = DataConfig(path=path, max_memory_gib=0, num_workers=workers)
    disk = Batches(config, seed=5).stream(3, 6, share)
    count = 0
    for (images, labels), (images2, labels2) in zip(memory, disk, strict=True):
        assert images.dtype == torch.uint8
        assert images.shape == (2, 1, 28, 28)
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
        count += 1
    assert count == 3 * 2  # steps, rounds


def test_facts_of_the_data(fashion_mnist: Path) -> None:
    data = Batches(DataConfig(path=str(fashion_mnist)), seed=0).metadata
    assert (data.num_images, data.image_shape, data.num_classes) == (60_000, (1, 28, 28), 10)
    assert (data.class_names or ())[9:] == ("ankle boot",)
    blind = Batches(DataConfig(path=str(fashion_mnist), labels=False), seed=0).metadata
    assert (blind.num_classes, blind.class_names) == (0, None)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Batches(DataConfig(path=str(tmp_path / "nowhere")), seed=0)


def test_seeds_of_different_places_differ() -> None:
    places = [derive(0, "draws", step, micro) for step in range(50) for micro in range(4)]
    assert len(set(places)) == len(places)
    assert derive(0, 1, 23) != derive(0, 12, 3)
    assert all(0 <= seed < 2**63 for seed in places)
