"""The data contract: every bad input is refused by file, field and value."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.data.records import PerturbationData, from_arrays
from mantra_ray.errors import InputError
from mantra_ray.files import atomic


def arrays(n: int = 4, genes: int = 3) -> dict:
    rng = np.random.default_rng(0)
    return {
        "regulator": np.array([0, 1, 0, 1]),
        "dose": np.array([0.0, 0.5, 0.7, 1.0]),
        "state": np.array([0, 0, 1, 1]),
        "delta_expression": rng.normal(size=(n, genes)),
        "delta_expression_se": np.full((n, genes), 0.1),
        "delta_program": rng.normal(size=(n, 2)),
        "delta_trait": rng.normal(size=(n, 1)),
        "n_cells": np.full(n, 50.0),
        "gene_names": ["A", "B", "C"],
        "regulator_names": ["A", "X"],
        "state_names": ["rest", "stim"],
    }


def test_good_data_get_the_contracts_types_and_counted_names():
    fields = arrays()
    for name in ("gene_names", "regulator_names", "state_names", "state"):
        del fields[name]
    data = from_arrays(fields)
    assert data.gene_names == ("gene0", "gene1", "gene2") and data.regulator_names == ("reg0", "reg1")
    assert data.program_names == ("program0", "program1") and data.trait_names == ("trait0",)
    assert data.state.tolist() == [0] * 4 and data.strategy.tolist() == [0] * 4 and data.group.tolist() == [0, 1, 2, 3]
    assert data.regulator.dtype == np.int64 and data.delta_expression.dtype == data.dose.dtype == np.float32


def test_programs_alone_are_enough():
    data = from_arrays({"regulator": [0, 0], "dose": [0.1, 0.2], "delta_program": np.ones((2, 3))})
    assert data.delta_expression is None and data.gene_names == ()


def put(name, value, row=2, column=1):
    def change(fields):
        matrix = np.array(fields[name])
        matrix[(row, column) if matrix.ndim == 2 else row] = value
        fields[name] = matrix

    return change


def replace(**changes):
    return lambda fields: fields.update(changes)


def without(*names):
    return lambda fields: [fields.pop(name) for name in names]


BAD = {
    "NaN": (put("delta_expression", np.nan), "delta_expression", "nan", "record 2, column 1"),
    "infinity": (put("delta_program", np.inf), "delta_program", "inf", "record 2, column 1"),
    "float32 overflow": (put("delta_expression", 1e300), "delta_expression", "inf", "record 2, column 1"),
    "NaN dose": (put("dose", np.nan), "dose", "nan", "record 2"),
    "dose above 1": (put("dose", 1.5), "dose", "1.5", "record 2: lies outside [0, 1]"),
    "dose below 0": (put("dose", -0.5), "dose", "-0.5", "record 2"),
    "unknown regulator": (put("regulator", 7), "regulator", "7", "record 2: is not one of the 2 regulators"),
    "negative regulator": (put("regulator", -1), "regulator", "-1", "record 2"),
    "fractional regulator": (replace(regulator=np.array([0, 0.5, 1, 1])), "regulator", "0.5", "record 1"),
    "unknown state": (put("state", 2), "state", "2", "record 2"),
    "zero se": (put("delta_expression_se", 0.0), "delta_expression_se", "0.0", "record 2, column 1"),
    "se without expression": (without("delta_expression"), "delta_expression_se", "(4, 3)", "shape"),
    "negative cells": (put("n_cells", -3), "n_cells", "-3.0", "record 2: is negative"),
    "duplicate gene": (replace(gene_names=["A", "B", "A"]), "gene_names", "'A'", "position 2"),
    "duplicate regulator": (replace(regulator_names=["X", "X"]), "regulator_names", "'X'", "position 1"),
    "too few gene names": (replace(gene_names=["A", "B"]), "gene_names", "2", "3 names are wanted"),
    "short dose": (replace(dose=np.zeros(3)), "dose", "(3,)", "[4] is wanted"),
    "flat expression": (replace(delta_expression=np.zeros(4)), "delta_expression", "(4,)", "[4, columns]"),
    "no genes": (replace(delta_expression=np.zeros((4, 0))), "delta_expression", "(4, 0)", "[4, columns]"),
    "se of another shape": (replace(delta_expression_se=np.ones((4, 2))), "delta_expression_se", "(4, 2)", "shape"),
    "text": (replace(dose=np.array(["a"] * 4)), "dose", "'<U1'", "is not numeric"),
    "no dose": (without("dose"), "dose", "regulator", "is missing"),
    "no effects": (
        without("delta_expression", "delta_expression_se", "delta_program"),
        "delta_expression",
        "None",
        "neither",
    ),
    "huge nameless index": (
        replace(regulator=np.array([0, 1, 0, 10**12]), regulator_names=[]),
        "regulator",
        "1000000000000",
        "needs regulator_names",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_file_field_and_value(name):
    change, field, value, problem = BAD[name]
    fields = arrays()
    change(fields)
    with pytest.raises(InputError) as caught:
        from_arrays(fields, "screen.npz", {field: "KEY"})
    message = str(caught.value)
    assert message.startswith("screen.npz: KEY: ") and value in message and problem in message


def test_no_records_are_refused():
    with pytest.raises(InputError, match="there are no records"):
        from_arrays({"regulator": np.zeros(0, int), "dose": np.zeros(0), "delta_program": np.zeros((0, 2))})


def test_take_keeps_names_and_selects_every_field():
    data = from_arrays(arrays())
    part = data.take(np.array([2, 0]))
    assert part.regulator.tolist() == [0, 0] and part.state.tolist() == [1, 0] and part.group.tolist() == [2, 0]
    for field in dataclasses.fields(PerturbationData):
        whole, kept = getattr(data, field.name), getattr(part, field.name)
        assert kept == whole if isinstance(whole, tuple) else np.array_equal(kept, whole[[2, 0]])


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
