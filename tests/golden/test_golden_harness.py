"""The harness itself: it notices what is wrong, and knows nothing but what meta.json says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import (
    HERE,
    MismatchError,
    NotBuiltError,
    Run,
    compare,
    find_cases,
    golden_folder,
    read_case,
)
from golden_kinds import REASONS, check
from safetensors.torch import load_file, save_file
from torch import Tensor

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]
MakeCase = Callable[..., Run]

NETWORK, SAMPLER, LOSS = "edm_net_song_skip", "edm_sampler_gmm", "edm_loss_vp"


@pytest.fixture
def edited(tmp_path: Path) -> MakeCase:
    """Copies a shipped case under another name, keeps one run of it, and lets an edit at it."""

    def make(case: str, kind: str, edit: Edit = lambda meta, io: None, index: int = 0) -> Run:
        source = HERE / "data" / case
        meta = json.loads((source / "meta.json").read_text())
        meta["runs"] = [[run for run in meta["runs"] if run["kind"] == kind][index]]
        io = load_file(source / "io.safetensors")
        edit(meta, io)
        folder = tmp_path / "anything"
        folder.mkdir()
        (folder / "meta.json").write_text(json.dumps(meta))
        save_file(io, folder / "io.safetensors")
        for weights in source.glob("weights*"):
            (folder / weights.name).symlink_to(weights)
        [run] = read_case(folder).runs()
        return run

    return make


@pytest.mark.parametrize(
    ("case", "kind", "output"),
    [
        (NETWORK, "edm_forward", "D"),
        (NETWORK, "edm_sigma_sweep", "D"),
        (NETWORK, "edm_raw", "map_noise"),
        (SAMPLER, "edm_sampler", "sigma_calls"),
        (LOSS, "edm_loss", "grad_norm"),
    ],
)
@pytest.mark.parametrize("share", [5e-5, float("nan")])
def test_perturbed_number_fails(
    edited: MakeCase, case: str, kind: str, output: str, share: float
) -> None:
    """One number, moved by a share of itself: the largest one, so that the bound is what counts."""

    def perturb(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        values = io[meta["runs"][0]["outputs"][output]].view(-1)
        values[values.abs().argmax()] *= 1 + share

    with pytest.raises(MismatchError, match=f": {output}"):
        check(edited(case, kind, perturb))


def test_small_level_of_sweep_is_judged_by_itself(edited: MakeCase) -> None:
    """An error that only the quietest noise level shows, far below the loudest one's tolerance."""

    def perturb(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        D = io[meta["runs"][0]["outputs"]["D"]]
        quiet = D.abs().amax((1, 2, 3, 4)).argmin()
        D[quiet] *= 1 + 1e-4
        assert (1e-4 * D[quiet].abs().max()) < 2e-5 * D.abs().max()

    with pytest.raises(MismatchError, match="largest error"):
        check(edited("edm_net_ncsnpp_ve", "edm_sigma_sweep", perturb))


def test_wrong_index_fails(edited: MakeCase) -> None:
    def perturb(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        io[meta["runs"][0]["outputs"]["index"]][0] += 1

    with pytest.raises(MismatchError, match="index differs"):
        check(edited("edm_net_adm_iddpm", "edm_round_sigma", perturb))


def test_wrong_shape_fails() -> None:
    with pytest.raises(MismatchError, match="shape"):
        compare("x", torch.zeros(3, 1), torch.zeros(3))


def test_norm_counts_beside_the_largest_error() -> None:
    """An error of 1.5e-5 everywhere keeps below the largest one allowed, and is too much."""
    with pytest.raises(MismatchError, match="norm"):
        compare("x", torch.full((9,), 1 + 1.5e-5), torch.ones(9))
    compare("x", torch.full((9,), 1 + 1.5e-5), torch.ones(9), kernel_noise=1e-6)


def _rename_kind(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    meta["runs"][0]["kind"] = "edm_something"


def _add_output(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    meta["runs"][0]["outputs"]["noise_of_the_sea"] = next(iter(io))


def _add_input(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    meta["runs"][0]["inputs"]["low_res"] = next(iter(io))


def _add_param(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    meta["runs"][0]["params"]["force_fp32"] = True


def _change_builder(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    meta["constructors"]["net"]["builder"] = "edm2_precond"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_rename_kind, "unknown kind 'edm_something'"),
        (_add_output, "noise_of_the_sea"),
        (_add_input, "input low_res"),
        (_add_param, "param force_fp32"),
        (_change_builder, "unknown builder 'edm2_precond'"),
    ],
)
def test_unknown_things_fail(edited: MakeCase, edit: Edit, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        check(edited(NETWORK, "edm_forward", edit))


@pytest.mark.parametrize("change", [-1, 1])
def test_number_of_draws_counts(edited: MakeCase, change: int) -> None:
    def drop(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        [draw] = meta["runs"][0]["draws"]
        noise = io[draw["key"]]
        io[draw["key"]] = noise[:change] if change < 0 else torch.cat([noise, noise[:change]])

    run = edited(SAMPLER, "edm_sampler", drop, index=1)
    with pytest.raises(MismatchError, match=r"noise is drawn|left over"):
        check(run)


@pytest.mark.parametrize(("case", "kind"), [(NETWORK, "edm_grad"), (SAMPLER, "edm_sampler")])
def test_other_names_pass(edited: MakeCase, case: str, kind: str) -> None:
    """Folder, run and tensors have other names; what the run says of them is all that counts."""

    def rename(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        meta["case"] = "other"
        [run] = meta["runs"]
        run["name"] = "other"
        tensors = dict(io)
        io.clear()
        for part in ("inputs", "outputs"):
            for name, key in run[part].items():
                run[part][name] = f"other.{key}"
                io[run[part][name]] = tensors[key]

    check(edited(case, kind, rename))


def test_planned_kind_is_not_built(edited: MakeCase) -> None:
    def plan(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        meta["runs"][0]["kind"] = next(iter(REASONS))

    with pytest.raises(NotBuiltError):
        check(edited(NETWORK, "edm_forward", plan))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"source": {"repository": "x/unheard-of"}}'])
def test_case_that_says_nothing_known_fails(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "meta.json").write_text(text)
    [case] = find_cases(tmp_path)
    [run] = case.runs()
    with pytest.raises(MismatchError, match="unknown kind"):
        check(run)


def test_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENLAB_GOLDEN", str(tmp_path))
    assert golden_folder() == tmp_path
    monkeypatch.delenv("GENLAB_GOLDEN")
    monkeypatch.setenv("GENLAB_SHARED", str(tmp_path))
    assert golden_folder() == HERE / "data"
