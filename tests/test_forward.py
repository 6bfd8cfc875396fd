"""Folds on disk, and how a correction passes through the cascade."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.errors import InputError
from mantra_ray.forward import Fold, predict

EXPRESSION = ("delta_expression", "base_expression", "lift_expression", "loadings")


@pytest.fixture(scope="module")
def fold(planted) -> Fold:
    return planted()


@pytest.fixture(scope="module")
def programs_only(fold) -> Fold:
    """A fold of data without expression."""
    return dataclasses.replace(fold, **dict.fromkeys(EXPRESSION))


@pytest.mark.parametrize("which", ["fold", "programs_only"])
def test_a_fold_survives_its_file(which, request, tmp_path):
    fold, path = request.getfixturevalue(which), tmp_path / "new" / "folder" / "fold.npz"
    fold.save(path)
    again = Fold.load(path)
    for field in dataclasses.fields(Fold):
        stored, given_ = getattr(again, field.name), getattr(fold, field.name)
        if isinstance(given_, np.ndarray):
            assert stored.dtype == given_.dtype
            np.testing.assert_array_equal(stored, given_)
        else:
            assert stored == given_, field.name
    assert [file.name for file in path.parent.iterdir()] == ["fold.npz"]


def test_a_fold_without_traits_survives_its_file(fold, tmp_path):
    bare = dataclasses.replace(
        fold,
        trait_weights=fold.trait_weights[:, :0],
        delta_trait=fold.delta_trait[:, :0],
        names=fold.names | {"trait": []},
    )
    bare.save(tmp_path / "fold.npz")
    again = Fold.load(tmp_path / "fold.npz")
    assert again.trait_weights.shape == (6, 0) and again.names["trait"] == []
    assert predict(again, again.test).trait.shape == (len(again.test), 0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.999))
def test_a_file_cut_short_is_refused_by_name(tmp_path_factory, planted, share):
    path = tmp_path_factory.mktemp("cut") / "fold.npz"
    planted().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"fold\.npz"):
        Fold.load(path)


def test_a_changed_byte_in_an_array_is_noticed(fold, tmp_path):
    path = tmp_path / "fold.npz"
    fold.save(path)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(fold.base_program.tobytes()[:40])
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fold\.npz"):
        Fold.load(path)


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nosuch\.npz"):
        Fold.load(tmp_path / "nosuch.npz")
    (tmp_path / "text.npz").write_text("not a fold")
    with pytest.raises(InputError, match=r"text\.npz"):
        Fold.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", regulator=np.arange(3))
    with pytest.raises(InputError, match=r"other\.npz"):
        Fold.load(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", names=np.array({}, object), meta=np.array({}, object))
    with pytest.raises(InputError, match=r"pickled\.npz"):
        Fold.load(tmp_path / "pickled.npz")


def test_a_file_without_its_arrays_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "fold.npz", names="{}", meta="{}", regulator=np.arange(3))
    with pytest.raises(InputError, match="lacks dose, state"):
        Fold.load(tmp_path / "fold.npz")


def test_a_failed_save_leaves_the_file_that_was_there(fold, tmp_path, monkeypatch):
    path = tmp_path / "fold.npz"
    fold.save(path)
    before = path.read_bytes()

    def fail(handle, **arrays):
        handle.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    for target in (path, tmp_path / "first.npz"):
        with pytest.raises(OSError, match="no space"):
            fold.save(target)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.npz")] == ["fold.npz"]


def test_without_a_correction_the_base_predicts(fold):
    rows = np.array([5, 2, 2, 90])
    prediction = predict(fold, rows)
    assert np.array_equal(prediction.program, fold.base_program[rows])
    assert np.array_equal(prediction.expression, fold.base_expression[rows])
    assert np.array_equal(prediction.trait, fold.base_program[rows] @ fold.trait_weights)
    nothing = predict(fold, rows, np.zeros((4, fold.programs), np.float32))
    for name in ("program", "expression", "trait"):
        assert np.array_equal(getattr(nothing, name), getattr(prediction, name))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_correction_passes_through_the_lifts(planted, seed):
    fold, rng = planted(), np.random.default_rng(seed)
    rows = rng.integers(0, len(fold.regulator), 7)
    correction = rng.normal(size=(7, fold.programs)).astype(np.float32)
    prediction = predict(fold, rows, correction)
    for i, row in enumerate(rows):
        program = fold.base_program[row] + sum(correction[i, k] * fold.lift[k] for k in range(fold.programs))
        genes = fold.base_expression[row] + sum(
            correction[i, k] * fold.lift_expression[k] for k in range(fold.programs)
        )
        np.testing.assert_allclose(prediction.program[i], program, atol=1e-4)
        np.testing.assert_allclose(prediction.expression[i], genes, atol=1e-4)
        np.testing.assert_allclose(prediction.trait[i], program @ fold.trait_weights, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_change_of_expression_is_added_after_the_manifold_and_programs_follow(planted, seed):
    fold, rng = planted(), np.random.default_rng(seed)
    rows = rng.integers(0, len(fold.regulator), 7)
    change = rng.normal(size=(7, fold.loadings.shape[0])).astype(np.float32)
    prediction = predict(fold, rows, expression=change)
    for i, row in enumerate(rows):
        program = fold.base_program[row] + sum(g * weights for g, weights in zip(change[i], fold.loadings, strict=True))
        np.testing.assert_allclose(prediction.expression[i], fold.base_expression[row] + change[i], atol=1e-5)
        np.testing.assert_allclose(prediction.program[i], program, atol=1e-4)
        np.testing.assert_allclose(prediction.trait[i], program @ fold.trait_weights, atol=1e-3)
    nothing, base = predict(fold, rows, expression=np.zeros_like(change)), predict(fold, rows)
    for name in ("program", "expression", "trait"):
        assert np.array_equal(getattr(nothing, name), getattr(base, name))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_both_ways_of_correcting_agree_where_there_is_no_manifold(planted, seed):
    """A correction of programs is that of the smallest change of expression which has it."""
    fold, rng = planted(seed=1, manifold=False), np.random.default_rng(seed)
    rows = rng.integers(0, len(fold.regulator), 7)
    correction = rng.normal(size=(7, fold.programs)).astype(np.float32)
    by_programs = predict(fold, rows, correction)
    by_genes = predict(fold, rows, expression=correction @ np.linalg.pinv(fold.loadings))
    for name in ("program", "expression", "trait"):
        np.testing.assert_allclose(getattr(by_genes, name), getattr(by_programs, name), atol=1e-3)


def test_programs_of_the_planted_genes_are_the_planted_programs(fold):
    for name in ("delta", "base"):
        genes, programs = getattr(fold, f"{name}_expression"), getattr(fold, f"{name}_program")
        np.testing.assert_allclose(genes @ fold.loadings, programs, atol=1e-4)
    np.testing.assert_allclose(fold.lift_expression @ fold.loadings, fold.lift, atol=1e-4)


def test_data_without_expression_are_predicted_in_programs_and_traits(fold, programs_only):
    correction = np.ones((3, fold.programs), np.float32)
    rows = np.arange(3)
    bare, whole = predict(programs_only, rows, correction), predict(fold, rows, correction)
    assert bare.expression is None and predict(programs_only, rows).expression is None
    assert np.array_equal(bare.program, whole.program) and np.array_equal(bare.trait, whole.trait)


def test_the_residual_is_what_the_base_leaves(fold):
    np.testing.assert_allclose(fold.residual + fold.base_program, fold.delta_program, atol=1e-6)
    assert fold.residual.shape == (len(fold.regulator), fold.programs) == (144, 6)
