"""The checks of metric cases: they notice every change, and go by meta.json alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import HERE, MismatchError, Run, read_case
from golden_kinds import check
from safetensors.torch import load_file, save_file
from torch import Tensor

Meta = dict[str, Any]
Edit = Callable[[Meta, dict[str, Tensor]], None]
MakeCase = Callable[[str, Edit], Run]

FRECHET, KID, PRDC = "metrics_frechet", "metrics_kid", "metrics_prdc"
SCORE, VENDI = "metrics_inception_score", "metrics_vendi_mss"
WHOLE = "torch_fidelity_custom_extractor"


@pytest.fixture
def edited(tmp_path: Path) -> MakeCase:
    """Copies a shipped case, beside the one whose features it may take, and lets an edit at it."""

    def make(case: str, edit: Edit) -> Run:
        shutil.copytree(HERE / "data" / FRECHET, tmp_path / FRECHET)
        folder = tmp_path / "anything"
        shutil.copytree(HERE / "data" / case, folder)
        meta, io = (
            json.loads((folder / "meta.json").read_text()),
            load_file(folder / "io.safetensors"),
        )
        edit(meta, io)
        (folder / "meta.json").write_text(json.dumps(meta))
        save_file({k: v.contiguous() for k, v in io.items()}, folder / "io.safetensors")
        [run] = read_case(folder).runs()
        return run

    return make


def at(tree: Any, path: str) -> tuple[Any, Any]:
    """The container of a value, and its key there."""
    *way, last = path.split("/")
    for key in way:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return tree, last


@pytest.mark.parametrize(
    ("case", "path"),
    [
        (FRECHET, "tiny_eig/exact"),
        (FRECHET, "rank_deficient/exact"),
        (FRECHET, "d64/torch_fidelity_float32_features"),
        (FRECHET, "zero_var/edm_one_pass_float32_features"),
        (KID, "d64/torch_fidelity/1/float64_features/kernel_inception_distance_std"),
        (KID, "d64/mmd2_unbiased_full"),
        (SCORE, "torch_fidelity/3/result/inception_score_mean"),
        (SCORE, "adm/adm_split_250"),
        (VENDI, "n60/score_dual_cosine/2"),
        (VENDI, "n150/score_K_normalize_True_of_rbf"),
        (WHOLE, "png_directories/precision"),
        (WHOLE, "dataset_no_shuffle_seed_7/inception_score_std"),
    ],
)
@pytest.mark.parametrize("share", [2e-4, float("nan")])
def test_changed_value_fails(edited: MakeCase, case: str, path: str, share: float) -> None:
    """By 2e-4 of itself: twice what a case with float32 features allows."""

    def change(meta: Meta, io: dict[str, Tensor]) -> None:
        container, key = at(meta["values"], path)
        container[key] *= 1 + share

    with pytest.raises(MismatchError, match="not"):
        check(edited(case, change))


def test_float64_values_are_held_to_a_millionth(edited: MakeCase) -> None:
    def change(meta: Meta, io: dict[str, Tensor]) -> None:
        meta["values"]["rank_deficient"]["exact"] *= 1 + 2e-6

    with pytest.raises(MismatchError, match="the distance"):
        check(edited(FRECHET, change))


def test_one_image_more_inside_fails(edited: MakeCase) -> None:
    def change(meta: Meta, io: dict[str, Tensor]) -> None:
        meta["values"]["d64"]["prdc_k3"]["recall"] += 1 / 1000

    with pytest.raises(MismatchError, match="recall"):
        check(edited(PRDC, change))


@pytest.mark.parametrize(
    ("case", "path"),
    [
        (FRECHET, "d64/unheard_of"),
        (KID, "d64/mmd2_unheard_of_full"),
        (KID, "d64/torch_fidelity/0/kwargs/kid_unheard_of"),
        (SCORE, "adm/adm_unheard_of"),
        (PRDC, "ties/adm/unheard_of"),
        (VENDI, "n60/score_of_unheard_of"),
        (WHOLE, "dataset_unheard_of"),
        (WHOLE, "dataset/unheard_of"),
    ],
)
def test_unknown_value_fails(edited: MakeCase, case: str, path: str) -> None:
    def add(meta: Meta, io: dict[str, Tensor]) -> None:
        container, key = at(meta["values"], path)
        container[key] = 1.0

    with pytest.raises(MismatchError, match="unheard_of"):
        check(edited(case, add))


@pytest.mark.parametrize("case", [FRECHET, KID, PRDC, SCORE, VENDI, WHOLE])
def test_tensor_that_nobody_looks_at_fails(edited: MakeCase, case: str) -> None:
    def add(meta: Meta, io: dict[str, Tensor]) -> None:
        io["unheard_of"] = torch.zeros(2)

    with pytest.raises(MismatchError, match="unheard_of"):
        check(edited(case, add))


def test_changed_draw_fails(edited: MakeCase) -> None:
    def swap(meta: Meta, io: dict[str, Tensor]) -> None:
        io["first_subset_real"] = io["first_subset_real"].flip(0)

    with pytest.raises(MismatchError, match="other rows"):
        check(edited(KID, swap))


def test_another_network_fails(edited: MakeCase) -> None:
    def change(meta: Meta, io: dict[str, Tensor]) -> None:
        meta["extractor"]["definition"] += "; dropout"

    with pytest.raises(MismatchError, match="another network"):
        check(edited(WHOLE, change))


def test_other_names_pass(edited: MakeCase) -> None:
    """Pairs have other names and other numbers of rows; meta.json is all that counts."""

    def replace(meta: Meta, io: dict[str, Tensor]) -> None:
        meta["case"] = "other"
        rows = torch.randn(30, 4, dtype=torch.float64)
        io.clear()
        io |= {"new.real": rows, "new.fake": torch.cat([rows, rows])}
        # Equal means, and a covariance that is the other one times 2 (n - 1) / (2 n - 1).
        factor = 2 * 29 / 59
        exact = float(rows.T.cov().trace()) * (1 - factor**0.5) ** 2
        meta["values"] = {"new": {"exact": exact}}

    check(edited(FRECHET, replace))
