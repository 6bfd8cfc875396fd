import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from mantra_ray.cascade import consensus
from mantra_ray.commands.programs import main
from mantra_ray.config import ProgramsConfig
from mantra_ray.data.loadings import read_loadings
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.storage import write_npz
from mantra_ray.errors import InputError

CELLS, GENES, PROGRAMS, RECORDS = 200, 60, 3, 40
QUICK = ["--programs.restarts", "4", "--programs.iterations", "200", "--programs.k", "3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sparse matrix of counts with its genes' names, and records of changes, both of three planted programs."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    spectra = np.zeros((PROGRAMS, GENES))
    for k in range(PROGRAMS):
        spectra[k, k * 20 : (k + 1) * 20] = 1 + rng.random(20)
    usages = rng.dirichlet(np.full(PROGRAMS, 0.3), CELLS)
    sp.save_npz(folder / "counts.npz", sp.csr_matrix(rng.poisson(usages @ (spectra + 0.05) * 10)))
    names = [f"GENE{i}" for i in range(GENES)]
    (folder / "genes.txt").write_text("\n".join(names))
    changes = rng.standard_normal((RECORDS, PROGRAMS)) @ spectra + 0.05 * rng.standard_normal((RECORDS, GENES))
    data = PerturbationData(
        regulator=np.arange(RECORDS) % 10,
        dose=np.full(RECORDS, 0.5, np.float32),
        delta_expression=changes.astype(np.float32),
        gene_names=tuple(names),
    )
    write_npz(data, folder / "records.npz")
    return folder


def sets(loadings):
    """Which planted gene set each program's strongest genes come from."""
    strongest = np.argsort(-loadings, axis=0)[:10] // 20
    assert (strongest == strongest[:1]).all()
    return sorted(strongest[0].tolist())


@pytest.mark.slow
def test_programs_of_counts_are_written_as_loadings(ray_session, files, tmp_path, capsys):
    counts = ["--data", str(files / "counts.npz"), "--gene-names", str(files / "genes.txt")]
    assert main(["fit", *counts, *QUICK, "--genes", "50", "--out", str(tmp_path)]) == 0
    names = [f"GENE{i}" for i in range(GENES)]
    for name in ("loadings", "spectra_tpm"):
        loadings, programs, notes = read_loadings(tmp_path / f"{name}.parquet", names)
        assert sets(loadings) == [0, 1, 2] and programs == ("program0", "program1", "program2") and not notes
    usages = pq.read_table(tmp_path / "usages.parquet")
    assert usages.column_names == ["cell", *programs] and usages.num_rows == CELLS
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "loadings.parquet",
        "spectra_tpm.parquet",
        "usages.parquet",
    ]
    assert "50 over-dispersed genes" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nmf", "pca"])
def test_programs_of_changes_are_written_as_loadings(ray_session, files, tmp_path, capsys, method):
    args = ["--data", str(files / "records.npz"), *QUICK, "--programs.method", method, "--genes", "55"]
    assert main(["fit", *args, "--out", str(tmp_path)]) == 0
    loadings, _, notes = read_loadings(tmp_path / "loadings.parquet", [f"GENE{i}" for i in range(GENES)])
    assert "5 genes have no loadings" in notes[0]
    np.testing.assert_allclose(np.linalg.norm(loadings, axis=0), 1, atol=1e-4)
    assert method == "pca" or sets(loadings) == [0, 1, 2]
    assert "all records took part" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["loadings.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["records.npz", "counts.npz"])
def test_the_number_of_programs_is_compared_and_drawn(ray_session, files, tmp_path, capsys, name):
    args = ["--data", str(files / name), *QUICK, "--ks", "2", "3", "5"]
    assert main(["choose-k", *args, "--out", str(tmp_path)]) == 0
    table = pq.read_table(tmp_path / "k_selection.parquet").to_pydict()
    assert table["k"] == [2, 3, 5] and table["chosen"] == [False, True, False]
    assert table["error"][0] > table["error"][1] and 0 < min(table["silhouette"]) <= max(table["silhouette"]) <= 1
    assert (tmp_path / "k_selection.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "k_selection.svg").read_text()
    assert "3 *" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_restarts_on_ray_are_those_in_process(ray_session, monkeypatch, form):
    rows = form(np.random.default_rng(0).poisson(0.5, (50, 20)).astype(np.float32))
    config, seen = ProgramsConfig(restarts=4), []
    alone = consensus.restarts(rows, [2, 3], config, 0)
    monkeypatch.setattr(consensus, "DISTRIBUTE_FROM", 0)
    monkeypatch.setattr(consensus, "_in_process", None)
    spread = consensus.restarts(rows, [2, 3], config, 0, lambda *progress: seen.append(progress))
    for k in (2, 3):
        np.testing.assert_array_equal(spread[k], alone[k])
    assert seen == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize(
    ("command", "args", "problem"),
    [
        ("fit", ["--data", "absent.h5ad"], "no such file"),
        ("fit", ["--data", "absent.npz"], "no such file"),
        ("fit", ["--data", "sim", "--gene-names", "genes.txt"], "belongs to a sparse"),
        ("fit", ["--data", "sim", "--programs.restarts", "0"], "programs.restarts"),
        ("fit", ["--data", "sim", "--programs.density", "0"], "programs.density"),
        ("fit", ["--data", "sim", "--clip", "0"], "--clip"),
        ("fit", ["--data", "sim", "--genes", "-1"], "--genes"),
        ("fit", ["--data", "counts.npz", "--programs.method", "pca"], "programs of counts"),
        ("choose-k", ["--data", "sim", "--programs.method", "pca"], "only restarts of nmf"),
    ],
)
def test_unusable_options_are_refused_before_ray_starts(files, tmp_path, monkeypatch, command, args, problem):
    monkeypatch.chdir(files)
    monkeypatch.setattr("mantra_ray.commands.programs.connected", None)
    with pytest.raises(InputError, match=problem):
        main([command, *args, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_unusable_counts_leave_nothing_behind(ray_session, files, tmp_path):
    matrix = sp.load_npz(files / "counts.npz").astype(float)
    matrix.data[5] = -1
    sp.save_npz(tmp_path / "negative.npz", matrix)
    for command in ("fit", "choose-k"):
        with pytest.raises(InputError, match="not negative"):
            main([command, "--data", str(tmp_path / "negative.npz"), "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=r"--ks: the data allow 2 to 60"):
        main(["choose-k", "--data", str(files / "counts.npz"), "--ks", "99", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_usage(capsys):
    assert main(["--help"]) == 0 and "choose-k" in capsys.readouterr().out
    assert main([]) == 2 and main(["unknown"]) == 2 and "usage" in capsys.readouterr().err
