"""The harness itself: it notices what is wrong, and knows nothing but what meta.json says."""

import itertools
import json
import os
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
    golden_folders,
    read_case,
    unique_ids,
)
from golden_kinds import REASONS, check
from golden_noise import RecordedNoise
from golden_told import Notes, shared
from safetensors.torch import load_file, save_file
from torch import Tensor

Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]
MakeCase = Callable[..., Run]

NETWORK, SAMPLER, LOSS = "edm_net_song_skip", "edm_sampler_gmm", "edm_loss_vp"


@pytest.fixture
def edited(tmp_path: Path) -> MakeCase:
    """Copies a shipped case under another name, keeps one run of it, and lets an edit at it."""
    numbers = itertools.count()

    def make(case: str, kind: str, edit: Edit = lambda meta, io: None, index: int = 0) -> Run:
        source = HERE / "data" / case
        meta = json.loads((source / "meta.json").read_text())
        meta["runs"] = [[run for run in meta["runs"] if run["kind"] == kind][index]]
        io = load_file(source / "io.safetensors")
        edit(meta, io)
        folder = tmp_path / "anything" / str(next(numbers))
        folder.mkdir(parents=True)
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


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Two folders with a case of the same name, all that ``GENLAB_GOLDEN`` names."""
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        (folder / "same").mkdir(parents=True)
        (folder / "same" / "meta.json").write_text("{}")
    monkeypatch.setenv("GENLAB_GOLDEN", os.pathsep.join(map(str, made)))
    return made


def test_environment_names_folders(folders: list[Path]) -> None:
    assert golden_folders() == folders
    assert [case.folder.parent for case in find_cases(*golden_folders())] == folders


def test_runs_of_the_same_name_have_ids_of_their_own(folders: list[Path]) -> None:
    def ids(*where: Path) -> list[str]:
        return unique_ids([run for case in find_cases(*where) for run in case.runs()])

    assert ids(folders[0]) == ["same-whole"]
    assert ids(*folders) == ["one:same-whole", "two:same-whole"]
    assert ids(folders[0], folders[0]) == ["one:same-whole (1)", "one:same-whole (2)"]


def test_folder_that_is_not_there_is_named(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_GOLDEN", f"{folders[0]}{os.pathsep}unheard-of")
    with pytest.raises(NotADirectoryError, match="GENLAB_GOLDEN names unheard-of, which is"):
        golden_folders()


def test_shared_folders_are_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENLAB_GOLDEN", raising=False)
    monkeypatch.setenv("GENLAB_SHARED", str(tmp_path))
    assert golden_folders() == [HERE / "data"]
    for name in ("golden-edm2", "golden", "data"):
        (tmp_path / name).mkdir()
    assert golden_folders() == [tmp_path / "golden", tmp_path / "golden-edm2"]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_rows_of_a_batch_in_threads(edited: MakeCase, threads: int) -> None:
    """What a network is told is known, and must be right, in however many parts it is told."""

    def change(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        io[meta["runs"][0]["outputs"]["c_noise"]][-1] *= 1 + 5e-5

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = edited(NETWORK, "edm_sigma_sweep")
        assert len(run.input("x")[0]) > 1
        check(run)
        with pytest.raises(MismatchError, match="c_noise"):
            check(edited(NETWORK, "edm_sigma_sweep", change))
    finally:
        torch.set_num_threads(before)


def test_parts_of_a_batch_are_put_in_order() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x

    network = Network()
    notes = Notes(network)
    x = torch.arange(3.0)[:, None]
    network(x[2:], torch.tensor([5.0]))
    network(x[:2], torch.tensor([4.0]))
    call = notes.take()
    assert torch.equal(call.said, x)
    assert call.told.tolist() == [4, 4, 5]
    with pytest.raises(MismatchError, match="were told"):
        shared(call.told)
    network(x, torch.tensor([6.0]))
    assert shared(notes.take().told).tolist() == [6]


def _add_brownian(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    """Draws of a kind of their own, before those of the solver, and one more without a kind."""
    draws = meta["runs"][0]["draws"]
    shape = io[draws[0]["key"]].shape[1:]
    io["paths"], io["last"] = torch.randn(2, *shape), torch.randn(shape)
    draws.insert(0, {"key": "paths", "kind": "brownian", "stacked": True})
    draws.append({"key": "last", "stacked": False})


def test_forks_have_the_draws_of_their_kind(edited: MakeCase) -> None:
    run = edited(SAMPLER, "edm_sampler", _add_brownian, index=1)
    noise, tensors = RecordedNoise(run), run.case.tensors
    fork, shape = noise.fork("brownian"), tensors["last"].shape[1:]
    rows = [*tensors[run.spec["draws"][1]["key"]], tensors["last"]]
    assert torch.equal(fork.randn(shape), tensors["paths"][0])
    assert all(torch.equal(noise.randn(shape, row.dtype), row) for row in rows)
    with pytest.raises(MismatchError, match="1 official draws of brownian are left over"):
        noise.expect_end()
    assert torch.equal(noise.fork("brownian").randn(shape), tensors["paths"][1])
    noise.expect_end()
    for stream in (noise, fork, noise.fork("cads")):
        with pytest.raises(MismatchError, match="more noise"):
            stream.randn(shape)


def test_draws_of_a_fork_that_nobody_asks_for_fail(edited: MakeCase) -> None:
    def add(meta: dict[str, Any], io: dict[str, Tensor]) -> None:
        _add_brownian(meta, io)
        meta["runs"][0]["draws"].pop()

    with pytest.raises(MismatchError, match="2 official draws of brownian are left over"):
        check(edited(SAMPLER, "edm_sampler", add, index=1))
