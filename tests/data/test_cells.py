"""From cells to records: against a plain loop, in any blocks, over Ray or not; and what cannot be used is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mantra_ray.bench.cells import write_h5ad
from mantra_ray.data import h5ad
from mantra_ray.data.blocks import over_ray
from mantra_ray.data.cells import import_cells
from mantra_ray.data.cohort import CellOptions
from mantra_ray.data.quality import Thresholds
from mantra_ray.data.storage import read_records, write_npz
from mantra_ray.errors import InputError

LENIENT = Thresholds(min_umi=1, min_genes=1, max_mito=1, min_cells=2, min_cells_per_gene=0)
OPTIONS = CellOptions(batch_column="batch", state_column="state", dose_column="dose", thresholds=LENIENT)


def screen(cells=400, genes=12, seed=0):
    """Counts [cells, genes] and annotations: three regulators and controls, two states, three batches, two doses."""
    rng = np.random.default_rng(seed)
    obs = {
        "gene": rng.choice(["A", "B", "C", "non-targeting"], cells, p=[0.25, 0.25, 0.1, 0.4]).astype(object),
        "batch": rng.integers(3, size=cells),
        "state": rng.choice(["rest", "stim"], cells).astype(object),
        "dose": rng.choice([0.5, 1.0], cells),
    }
    rate = rng.gamma(2, 2, genes) * np.where(obs["batch"][:, None] == 0, rng.gamma(3, 1, genes), 1)
    rate = rate * np.where(obs["gene"] == "A", 3, 1)[:, None] ** (np.arange(genes) < 3)
    return rng.poisson(rate * rng.lognormal(0, 0.3, (cells, 1))).astype(np.float32), obs


def write(path, counts, obs, genes=None, **more):
    names = genes or [f"g{i}" for i in range(counts.shape[1])]
    write_h5ad(path, [sparse.csr_array(counts)], names, obs, **more)
    return path


def reference(counts, obs):
    """The module's formulas in plain loops: {(regulator, dose, state): (delta, se, n)} in float64."""
    library = counts.sum(1)
    target = np.median(library)
    x = np.log2(1 + counts * target / library[:, None])
    out = {}
    control = obs["gene"] == "non-targeting"
    for state in np.unique(obs["state"]):
        pools = {b: x[control & (obs["state"] == state) & (obs["batch"] == b)] for b in range(3)}
        variance = sum(((p - p.mean(0)) ** 2).sum(0) for p in pools.values()) / sum(len(p) - 1 for p in pools.values())
        for gene in np.unique(obs["gene"][~control]):
            for dose in np.unique(obs["dose"]):
                mine = (obs["gene"] == gene) & (obs["dose"] == dose) & (obs["state"] == state)
                d = np.array([x[i] - pools[obs["batch"][i]].mean(0) for i in np.flatnonzero(mine)])
                n = len(d)
                if n < 2:
                    continue
                share = np.array([(obs["batch"][mine] == b).sum() / n for b in range(3)])
                noise = variance * sum(share[b] ** 2 / len(pools[b]) for b in range(3))
                se = np.sqrt(d.var(0, ddof=1) / n + noise)
                out[gene, dose, state] = d.mean(0), np.maximum(se, 1 / n), n
    return out


def same(a, b):
    fields = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return all(x == y if isinstance(x, tuple) or x is None else np.array_equal(x, y) for x, y in fields)


def records_of(data):
    names = [
        (data.regulator_names[r], float(d), data.state_names[s])
        for r, d, s in zip(data.regulator, data.dose, data.state, strict=True)
    ]
    return {name: i for i, name in enumerate(names)}


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), entries=st.sampled_from([200, 700, 10**6]))
def test_records_are_those_of_a_plain_loop_in_blocks_of_any_size(tmp_path_factory, seed, entries):
    counts, obs = screen(seed=seed)
    path = write(tmp_path_factory.mktemp("cells") / "cells.h5ad", counts, obs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h5ad, "SPARSE_ENTRIES", entries)
        patch.setattr("mantra_ray.data.cells.MEDIAN_BLOCKS", 10**6)
        data, _ = import_cells(path, OPTIONS)
    place, wanted = records_of(data), reference(counts, obs)
    assert set(place) == set(wanted)
    for name, (delta, se, n) in wanted.items():
        row = place[name]
        np.testing.assert_allclose(data.delta_expression[row], delta, atol=2e-6)
        np.testing.assert_allclose(data.delta_expression_se[row], se, rtol=2e-5)
        assert data.n_cells[row] == n
    assert np.array_equal(data.group, data.state)


def test_standard_errors_are_the_spread_of_repeated_experiments(tmp_path):
    z = []
    for seed in range(20):
        counts, obs = screen(600, 8, seed)
        obs["gene"][obs["gene"] != "non-targeting"] = "C"  # no effect: every change is noise
        obs["state"][:], obs["dose"][:] = "rest", 1
        rng = np.random.default_rng(seed)
        rate = np.array([0.5, 1, 2, 4, 8, 8, 8, 8]) * np.where(obs["batch"][:, None] == 0, 2, 1)
        counts = rng.poisson(rate).astype(np.float32)
        data, _ = import_cells(write(tmp_path / "cells.h5ad", counts, obs), OPTIONS)
        z.append(data.delta_expression / data.delta_expression_se)
    assert 0.85 < np.std(z) < 1.15


def test_batch_effects_cancel_and_do_not_enter_the_errors(tmp_path):
    counts, obs = screen()
    counts[:, 0] = np.random.default_rng(1).poisson(60, len(counts))
    twisted = counts.copy()
    twisted[obs["batch"] == 1, 0] *= 8  # three log2 units
    fixed = dataclasses.replace(OPTIONS, umi_column="umi", target_sum=100.0)
    obs["umi"] = np.full(len(counts), 100.0)
    plain, _ = import_cells(write(tmp_path / "a.h5ad", counts, obs), fixed)
    shifted, _ = import_cells(write(tmp_path / "b.h5ad", twisted, obs), fixed)
    ignored, _ = import_cells(tmp_path / "b.h5ad", dataclasses.replace(fixed, batch_column=""))
    assert np.array_equal(plain.delta_expression[:, 1:], shifted.delta_expression[:, 1:])
    assert (shifted.delta_expression_se[:, 0] < 1.1 * plain.delta_expression_se[:, 0]).all()
    assert (ignored.delta_expression_se[:, 0] > 1.5 * plain.delta_expression_se[:, 0]).all()


@pytest.mark.slow
def test_over_ray_gives_the_same_bits_and_the_same_errors(ray_session, tmp_path, monkeypatch):
    counts, obs = screen()
    path = write(tmp_path / "cells.h5ad", counts, obs)
    monkeypatch.setattr(h5ad, "SPARSE_ENTRIES", 300)
    steps = []
    alone, notes = import_cells(path, OPTIONS, on_progress=lambda done, total, text: steps.append((done, total)))
    assert steps == [(i + 1, steps[0][1]) for i in range(steps[0][1])] and len(steps) > 20
    spread, again = import_cells(path, OPTIONS, over_ray)
    assert same(alone, spread) and notes == again
    counts[-1, 3] = -2
    with pytest.raises(InputError, match="cell 399, gene 3: is negative"):
        import_cells(write(path, counts, obs), OPTIONS, over_ray)


def test_quality_control_counts_what_it_leaves_out(tmp_path):
    counts, obs = screen(500, 12)
    counts[obs["gene"] == "C", :] *= np.arange(np.sum(obs["gene"] == "C"))[:, None] < 5  # five cells keep counts
    counts[:, 11] = 0
    counts[:7, 11] = 1
    genes = [f"g{i}" for i in range(9)] + ["MT-1", "mt-2", "rare"]
    path = write(tmp_path / "cells.h5ad", counts, obs, genes)
    umi, mito = counts.sum(1), counts[:, 9:11].sum(1) / np.maximum(counts.sum(1), 1)
    limits = Thresholds(min_umi=20, min_genes=8, max_mito=0.29, min_cells=10, min_cells_per_gene=10)
    data, notes = import_cells(path, CellOptions(thresholds=limits))
    low, few, high = umi < 20, (counts > 0).sum(1) < 8, mito > 0.29
    text = "\n".join(notes)
    assert f"{low.sum():,} cells with fewer than 20 UMIs are left out" in text
    assert f"{(few & ~low).sum():,} cells with fewer than 8 genes are left out" in text
    assert f"{(high & ~low & ~few).sum():,} cells with a mitochondrial share above 0.29 are left out" in text
    assert "1 genes detected in fewer than 10 cells are left out" in text and "rare" not in data.gene_names
    assert "1 records" in text and data.regulator_names == ("A", "B")
    kept = ~(low | few | high)
    assert data.n_cells.tolist() == [(kept & (obs["gene"] == name)).sum() for name in "AB"]
    given = obs | {"mitopercent": 100 * mito, "UMI_count": umi}
    write(path, counts, given, [f"h{i}" for i in range(12)])
    columns = CellOptions(mito_column="mitopercent", umi_column="UMI_count", thresholds=limits)
    again, notes = import_cells(path, columns)
    assert np.array_equal(again.n_cells, data.n_cells) and "mitopercent is read as a percentage" in notes
    np.testing.assert_array_equal(again.delta_expression, data.delta_expression)


def test_doses_from_quartiles_of_the_guides_umis(tmp_path):
    counts, obs = screen(800)
    obs["guide_umi"] = np.random.default_rng(1).permutation(800) * np.where(obs["batch"] == 1, 10, 1)
    options = dataclasses.replace(
        OPTIONS, dose_column="guide_umi", dose_from="umi-quartile", state_column="", strategy_column="dose"
    )
    data, _ = import_cells(write(tmp_path / "cells.h5ad", counts, obs), options)
    assert set(data.dose) == {0.25, 0.5, 0.75, 1} and data.strategy_names == ("0.5", "1.0")
    totals = [data.n_cells[data.dose == dose].sum() for dose in (0.25, 0.5, 0.75, 1)]
    assert max(totals) - min(totals) <= 6  # equal shares in each of the three batches, whatever its depth
    with pytest.raises(InputError, match="--dose-column"):
        import_cells(tmp_path / "cells.h5ad", dataclasses.replace(options, dose_column=""))


def test_names_symbols_and_missing_labels(tmp_path):
    counts, obs = screen()
    obs["gene"][:4] = ["", "nan", "A", "B"]
    symbols = np.array(["S", "S", *(f"s{i}" for i in range(10))], object)
    path = write(tmp_path / "cells.h5ad", counts, obs, var={"symbol": symbols})
    options = dataclasses.replace(OPTIONS, gene_column="symbol")
    with pytest.raises(InputError, match=r"var/symbol: gene 1: the name occurs twice.*found 'S'"):
        import_cells(path, options)
    data, notes = import_cells(path, dataclasses.replace(options, suffix_duplicates=True))
    assert data.gene_names[:3] == ("S_g0", "S_g1", "s0") and data.state_names == ("rest", "stim")
    assert notes[0] == "2 cells without a value of gene, state, batch are left out"
    write_npz(data, tmp_path / "records.npz")
    assert same(read_records(tmp_path / "records.npz"), data)


def test_batches_without_controls_are_named_or_left_out(tmp_path):
    counts, obs = screen()
    obs["gene"][(obs["state"] == "stim") & (obs["batch"] == 2) & (obs["gene"] == "non-targeting")] = "A"
    path = write(tmp_path / "cells.h5ad", counts, obs)
    with pytest.raises(InputError, match=r"control: 1 of 6 \(state, batch\) pairs have no control cells: stim/2;"):
        import_cells(path, OPTIONS)
    data, notes = import_cells(path, dataclasses.replace(OPTIONS, unmatched="drop"))
    lost = (obs["state"] == "stim") & (obs["batch"] == 2)
    assert f"{lost.sum()} cells without controls of their state and batch are left out (stim/2)" in notes
    assert data.n_cells.sum() == np.sum(~lost & (obs["gene"] != "non-targeting"))


def broken(change_counts=None, **columns):
    def make(path):
        counts, obs = screen()
        if change_counts:
            counts[change_counts[0]] = change_counts[1]
        for name, values in columns.items():
            obs[name] = values(obs) if callable(values) else values
        return write(path, counts, obs)

    return make


@pytest.mark.parametrize(
    ("make", "options", "problem"),
    [
        (broken(((7, 2), -1)), {}, "X: cell 7, gene 2: is negative"),
        (broken(((7, 2), np.nan)), {}, "X: cell 7, gene 2: is not finite"),
        (broken(((7, 2), 1.5)), {}, r"X: cell 7, gene 2: is not a whole number.*--matrix"),
        (broken(), {"batch_column": "gem_group"}, "obs column: there is no such column.*'gem_group'"),
        (broken(), {"control": "NTC"}, "control: no cell has this value in gene, only A, B, C, non-targeting"),
        (broken(dose=lambda obs: obs["dose"] * 3), {}, "obs/dose: cell .*: a dose lies in 0 to 1; --dose-from"),
        (broken(dose=lambda obs: obs["dose"] * np.nan), {}, "obs/dose: cell"),
        (broken(umi=np.full(400, np.nan)), {"umi_column": "umi"}, "obs/umi: cell 0: is no number"),
        (broken(mito=np.full(400, -1.0)), {"mito_column": "mito"}, "obs/mito: cell 0: is no number"),
        (broken(dose=np.linspace(0, 1, 400)), {}, "cells: no record has 2 cells, .*found 1"),
        (broken(), {"thresholds": dataclasses.replace(LENIENT, min_umi=1e6)}, "UMIs: no cell has 1e"),
        (broken(), {"thresholds": dataclasses.replace(LENIENT, min_cells=1)}, "--min-cells: must be at least 2"),
        (broken(), {"thresholds": dataclasses.replace(LENIENT, min_genes=13)}, "no perturbed cell is left"),
        (broken(), {"thresholds": dataclasses.replace(LENIENT, min_cells_per_gene=401)}, "genes: none is detected"),
        (
            broken(batch=lambda obs: np.where(obs["gene"] == "non-targeting", 0, 1)),
            {},
            r"control: 2 of 2 \(state, batch\) pairs have no control cells: rest/1, stim/1",
        ),
        (
            broken(gene=np.array(["non-targeting", *["A"] * 399], object), state=np.array(["rest"] * 400, object),
                   batch=np.zeros(400, int)),
            {},
            "controls: needs two control cells in a batch.*'rest'",
        ),
    ],
)  # fmt: skip
def test_bad_input_names_the_place(tmp_path, make, options, problem):
    path = make(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match=problem):
        import_cells(path, dataclasses.replace(OPTIONS, **options))


def test_what_blocks_are_given_grows_with_the_file_not_with_the_blocks(tmp_path, monkeypatch):
    counts, obs = screen()
    monkeypatch.setattr(h5ad, "SPARSE_ENTRIES", 100)
    arrays = {}

    def mapper(function, shared, blocks):
        for block in blocks:
            for values in block:
                if isinstance(values, np.ndarray):
                    owner = values if values.base is None else values.base
                    arrays[id(owner)] = owner
            yield function(shared, *block)

    import_cells(write(tmp_path / "cells.h5ad", counts, obs), OPTIONS, mapper)
    assert sum(owner.nbytes for owner in arrays.values()) <= 400 * 8 * 6  # six numbers a cell
