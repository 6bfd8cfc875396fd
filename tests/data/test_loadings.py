"""What the cnmf package writes, as W (plain matrices and tables: test_screen.py)."""

import numpy as np
import pytest

from mantra_ray.data.loadings import loadings_file, read_loadings
from mantra_ray.errors import InputError

GENES = ("A", "B", "C", "D")
SPECTRA = np.array([[1.0, 0.5, -2.0], [0.0, 2.0, 1.0]])  # programs x (C, A, X)
ALIGNED = np.array([[0.5, 2.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])


def write_text(path, genes=("C", "A", "X"), values=SPECTRA):
    rows = ["\t" + "\t".join(genes)]
    rows += ["\t".join([str(i + 1), *map(str, row)]) for i, row in enumerate(values)]
    path.write_text("\n".join(rows) + "\n")
    return path


def write_archive(path, genes=("C", "A", "X"), values=SPECTRA):
    columns = np.array(genes, dtype=object)  # as pandas holds text, hence pickled
    np.savez_compressed(path, data=values, index=np.arange(1, len(values) + 1), columns=columns)
    return path


@pytest.mark.parametrize(
    "name",
    ["gene_spectra_score.k_2.dt_0_5", "gene_spectra_tpm.k_2.dt_2_0", "spectra.k_2.dt_0_1.consensus",
     "starcat_spectra.k_2.dt_0_5"],
)  # fmt: skip
def test_spectra_of_cnmf_are_turned_and_aligned(tmp_path, name):
    for path in (write_text(tmp_path / f"run.{name}.txt"), write_archive(tmp_path / f"run.{name}.df.npz")):
        loadings, programs, notes = read_loadings(path, GENES)
        np.testing.assert_array_equal(loadings, ALIGNED)
        assert loadings.dtype == np.float32 and programs == ("GEP1", "GEP2")
        assert len(notes) == 1 and notes[0].endswith("2 genes have no loadings and count 0: B, D")


def test_a_folder_gives_its_best_spectra(tmp_path):
    with pytest.raises(InputError, match="holds no spectra of cnmf"):
        read_loadings(tmp_path, GENES)
    run = tmp_path / "run"
    run.mkdir()
    for kind in ("spectra.k_2.dt_0_5.consensus", "gene_spectra_tpm.k_2.dt_0_5", "gene_spectra_score.k_2.dt_0_5"):
        path = write_text(run / f"run.{kind}.txt")
        assert loadings_file(run) == path == loadings_file(tmp_path)  # the run's folder, or the one that holds it
    np.testing.assert_array_equal(read_loadings(run, GENES)[0], ALIGNED)
    write_text(run / "run.gene_spectra_score.k_3.dt_0_5.txt")
    with pytest.raises(InputError, match=r"2 files of spectra: name the one to use .*k_2.*k_3"):
        read_loadings(run, GENES)
    assert loadings_file(path) == path


@pytest.mark.parametrize("write", [write_text, write_archive])
@pytest.mark.parametrize(
    ("genes", "values", "problem"),
    [
        (("C", "A", "C"), SPECTRA, "row 2: the gene occurs twice .found 'C'"),
        (("X", "Y", "Z"), SPECTRA, "no gene of the data: A, B, C, D .found 'X, Y, Z'"),
        (("C", "A", "X"), SPECTRA * [1, np.nan, 1], "A: program 1 is not finite .found nan"),
        (("C", "A", "X"), SPECTRA[:, :2], "for 3 genes|2 programs and 3 genes"),
        (("X", "Y", "A"), SPECTRA * [1, 1, 0], "has no gene of the data .found 'GEP1'"),
        (("C", "A", "X"), SPECTRA[[0, 0]], "linearly dependent"),
    ],
)
def test_unusable_spectra_are_refused(tmp_path, write, genes, values, problem):
    suffix = "txt" if write is write_text else "df.npz"
    path = write(tmp_path / f"run.gene_spectra_score.k_2.dt_0_5.{suffix}", genes, values)
    with pytest.raises(InputError, match=problem):
        read_loadings(path, GENES)


class Harmful:
    def __reduce__(self):
        return eval, ("print('run by a file')",)  # not print itself, which Ray replaces while it runs


def test_an_archive_can_hold_names_but_no_code(tmp_path, capsys):
    path = tmp_path / "run.gene_spectra_score.k_2.dt_0_5.df.npz"
    columns = np.array([Harmful(), "A", "X"], dtype=object)
    np.savez(path, data=SPECTRA, index=np.arange(2), columns=columns)
    with pytest.raises(InputError, match=r"it holds builtins\.eval"):
        read_loadings(path, GENES)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["txt", "df.npz"])
def test_damaged_spectra_are_refused(tmp_path, suffix):
    path = tmp_path / f"run.gene_spectra_score.k_2.dt_0_5.{suffix}"
    with pytest.raises(InputError, match="no such file"):
        read_loadings(path, GENES)
    whole = (write_text if suffix == "txt" else write_archive)(path).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\tA\tC\n1\t2\tmuch\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as cnmf's spectra|programs and 0 genes"):
            read_loadings(path, GENES)
