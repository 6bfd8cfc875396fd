"""The commands `mantra data ...`: what they print, save and refuse."""

import dataclasses
import functools
import hashlib
import http.server
import sys
import threading
import types

import numpy as np
import pytest

from mantra_ray.commands import data as command
from mantra_ray.data.records import from_arrays
from mantra_ray.data.sources import CATALOG, FOLDER_VARIABLE, CataloguedFile, DataSet
from mantra_ray.data.storage import write_npz
from mantra_ray.errors import InputError


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A set `toy` of one file behind an address and one without, and the folder that is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.h5ad").write_bytes(b"content")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/a.h5ad"
    hashed = hashlib.sha256(b"content").hexdigest()
    reachable = CataloguedFile("a.h5ad", 7, hashed, "a page", "CC0", "someone", url)
    made = dataclasses.replace(reachable, name="b.csv", url="", source="table 3 of the paper")
    monkeypatch.setitem(CATALOG, "toy", DataSet("one file", (reachable,), "mantra data import FILE"))
    monkeypatch.setitem(CATALOG, "pair", DataSet("two files", (reachable, made)))
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_list_shows_what_is_here(tmp_path, capsys, monkeypatch, served):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    for name, entry in CATALOG.items():
        assert name in shown and all(file.licence in shown for file in entry.files)
    assert "374.6 MB" in shown and "built in" in shown and "no folder is named" in shown
    (tmp_path / "a.h5ad").write_bytes(b"content")
    (tmp_path / "K562_gwps_normalized_bulk_01.h5ad.part").write_bytes(bytes(2000))
    command.main(["list", "--data-dir", str(tmp_path)])
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.count("│") > 4}
    assert "yes" in lines["toy"] and "1 of 2 files" in lines["pair"] and "no, 2.0 kB begun" in lines["k562_gwps"]


def test_fetch_gets_verifies_and_says_what_is_next(tmp_path, capsys, served):
    for state in ("fetched, verified", "was here, verified"):
        assert command.main(["fetch", "toy", "--data-dir", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert f"a.h5ad: {state}" in shown and f"mantra data import {tmp_path}/a.h5ad --out records" in shown
    assert (tmp_path / "a.h5ad").read_bytes() == b"content"


def test_fetch_gets_what_it_can_and_names_the_rest(tmp_path, capsys, served):
    with pytest.raises(InputError, match=r"table 3 of the paper .CC0; 7 bytes; sha256"):
        command.main(["fetch", "pair", "--data-dir", str(tmp_path)])
    assert (tmp_path / "a.h5ad").exists()
    (served / "a.h5ad").unlink()
    with pytest.raises(InputError, match=r"2 of 2 files are missing.*found 'a.h5ad, b.csv'"):
        command.main(["fetch", "pair", "--data-dir", str(tmp_path / "other")])
    shown = capsys.readouterr().out
    assert "the server answers 404" in shown and "table 3 of the paper" in shown


def test_fetch_refuses_what_cannot_be(monkeypatch, capsys):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert command.main(["fetch", "sim"]) == 0 and "nothing to fetch" in capsys.readouterr().out
    for args, problem in (
        (["nothing"], "is not one of sim, morphic"),
        (["norman"], "--data-dir or MANTRA_DATA_DIR"),
        (["norman", "--attempts", "0"], "at least 1"),
    ):
        with pytest.raises(InputError, match=problem):
            command.main(["fetch", *args])


def screen(path, n=12):
    rng = np.random.default_rng(0)
    fields = {
        "regulator": np.arange(n) % 4,
        "dose": rng.choice([0.5, 1.0], n),
        "state": np.arange(n) % 3,
        "delta_expression": rng.normal(size=(n, 3)),
        "regulator_names": ["A", "B", "C", "D"],
        "state_names": ["x", "[y]", "z"],
    }
    write_npz(from_arrays(fields), path)
    return path


def test_describe_prints_counts_and_saves_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["describe", str(screen(tmp_path / "mine.npz")), "--top", "3"]) == 0
    shown = capsys.readouterr().out
    for part in ("records by regulator", "records by dose", "records by state", "and 1 more", "4 with 3", "[y]"):
        assert part in shown
    assert "records by strategy" not in shown and "note: no standard errors" in shown and "no traits given" in shown
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_describe_shows_data_that_no_split_fits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["describe", str(screen(tmp_path / "one.npz", n=1)), "--picture", "p.png"]) == 0
    assert "no split is possible" in capsys.readouterr().out and (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["none.npz"], "no such file"),
        (["k562_gwps"], "holds no records yet"),
        (["mine.npz", "--top", "0"], "at least 1"),
        (["mine.npz", "--picture", "p.jpg"], "must end in .png"),
    ],
)
def test_describe_refuses_and_leaves_nothing(tmp_path, monkeypatch, args, problem):
    monkeypatch.chdir(tmp_path)
    screen(tmp_path / "mine.npz")
    with pytest.raises(InputError, match=problem):
        command.main(["describe", *args])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


def test_import_is_handed_on(monkeypatch):
    seen = []
    module = types.SimpleNamespace(main=lambda args: seen.append(list(args)) or 7)
    monkeypatch.setitem(sys.modules, "mantra_ray.commands.data_import", module)
    assert command.main(["import", "cells.h5ad", "--out", "x.npz"]) == 7 and seen == [["cells.h5ad", "--out", "x.npz"]]


def test_usage(capsys):
    assert command.main(["--help"]) == 0 and "mantra data fetch NAME" in capsys.readouterr().out
    assert command.main([]) == 2 and "usage" in capsys.readouterr().err
