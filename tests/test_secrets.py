"""Secrets that pass through a sweep reach neither its files nor its output nor the words of an error."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console
from tensorboardX import SummaryWriter

from mantra_ray import secrets
from mantra_ray.cli import main
from mantra_ray.errors import InputError
from mantra_ray.files import place
from mantra_ray.secrets import HIDDEN, remember, scrubbed
from mantra_ray.sweep import cluster
from mantra_ray.sweep.progress import Display
from mantra_ray.sweep.store import Store
from mantra_ray.terminal import tell

VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLE",
    "HF_TOKEN": "hf_" + "q7" * 12,
    "RAY_AUTH_TOKEN": "5ec7e7" * 10 + "beef",
}
PASSWORD = "Zq89/within+Slash9"
STORE = f"memory://AKIAIOSFODNN7EXAMPLE:{PASSWORD}@bucket/runs"
SECRETS = (*VARIABLES.values(), PASSWORD, "within+Slash9", "AKIAIOSFODNN7EXAMPLE")
# A sweep of a recipe's kind, one trial of which fails while it holds secrets; then what a user would do with it.
SWEEP = """
import json, os, sys
from pathlib import Path
import fsspec, psutil
from mantra_ray.cli import main
from mantra_ray.sweep import runner, worker
from mantra_ray.sweep.options import parse
from mantra_ray.terminal import console, guarded

notes, driver, store = Path(sys.argv.pop(1)), os.getpid(), sys.argv[sys.argv.index("--copy-to") + 1]

def run(spec, fold, bench, on_epoch, keeper):
    if spec.config.nexus.regret_gamma != 1.0:
        return worker.execute(spec, fold, bench, on_epoch, keeper)
    found = {}
    for process in psutil.Process(driver).children(recursive=True):
        for socket in process.net_connections("inet"):
            if socket.status == psutil.CONN_LISTEN:
                found.setdefault(process.name(), []).append(socket.laddr.ip)
    (notes / "listening.json").write_text(json.dumps(found))
    raise OSError(f"{store} refuses {os.environ['AWS_SECRET_ACCESS_KEY']}, Bearer {os.environ['HF_TOKEN']}")

options = parse(sys.argv[1:], "")
arms = [{"nexus.regret_gamma": gamma} for gamma in (0.0, 1.0)]
code = guarded(lambda: runner.run_sweep(options.sweep("leaky", arms), options, console(), run))
memory = fsspec.filesystem("memory")
for number, name in enumerate(memory.find("/")):
    (notes / f"{number}_{Path(name).name}").write_bytes(memory.cat_file(name))
folder = str(Path(options.out) / "leaky")
sys.exit(10 * code + sum(main([*command.split(), folder]) for command in ("report", "results --failed", "status")))
"""


def contents(path: Path):
    """The bytes of a file, and what is compressed or encoded in them."""
    data = path.read_bytes()
    yield data
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    elif path.suffix == ".parquet":
        yield repr((pq.read_schema(path).metadata, pq.read_table(path).to_pylist())).encode()
    elif path.suffix == ".html":
        yield from (base64.b64decode(code) for code in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data))


def leaks(folder: Path) -> list[tuple[str, str]]:
    """Files under a folder with the secrets that stand in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    held = ((path, data) for path in files for data in contents(path))
    return [(str(path), one) for path, data in held for one in SECRETS if one.encode() in data or one in path.name]


@pytest.mark.parametrize("kind", ["parquet", "npz", "html", "tfevents", "name"])
def test_the_search_finds_a_secret_in_every_kind_of_file(tmp_path, kind):
    assert not leaks(tmp_path)
    if kind == "parquet":
        pq.write_table(pa.table({"error": [f"by {PASSWORD} "] * 9}), tmp_path / "a.parquet", compression="zstd")
    elif kind == "npz":
        np.savez_compressed(tmp_path / "a.npz", text=np.frombuffer(PASSWORD.encode() * 3, np.uint8))
    elif kind == "html":
        (tmp_path / "a.html").write_text(f'<img src="data:x;base64,{base64.b64encode(PASSWORD.encode()).decode()}">')
    elif kind == "tfevents":
        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_text("settings", PASSWORD, 0)
    else:
        (tmp_path / SECRETS[-1]).touch()
    assert leaks(tmp_path)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """What a sweep with secrets in its command line, environment and errors left and printed."""
    folder, session = tmp_path_factory.mktemp("leaky"), tempfile.mkdtemp(prefix="mr", dir="/tmp")  # sockets lie there
    (folder / "notes").mkdir()
    rng = np.random.default_rng(0)
    who = {"reg_idx": np.arange(96) % 12, "dose": np.repeat([0.3, 0.9], 48), "state": np.arange(96) // 12 % 2}
    np.savez(folder / "screen.npz", **who, deltaP_obs=rng.normal(size=(96, 4)))  # programs alone: no network to train
    command = ["--smoke", "--seeds=1", "--splits=seen", "--data=screen.npz", "--out=runs", "--copy-to", STORE]
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = base | VARIABLES | {"RAY_TMPDIR": session, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, "notes", *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    try:
        shutil.copytree(session, folder / "session", ignore=lambda at, names: [n for n in names if n == "sockets"])
    finally:
        shutil.rmtree(session, ignore_errors=True)
    assert done.returncode == 10, done.stdout + done.stderr  # the failed trial's 1
    return folder, done.stdout + done.stderr


@pytest.mark.slow
def test_no_file_of_a_sweep_and_no_line_that_it_prints_holds_a_secret(leaky):
    folder, printed = leaky
    copied = {path.name.partition("_")[2] for path in (folder / "notes").glob("*.parquet")}
    assert len(copied) == 3 and list(folder.glob("runs/leaky/tensorboard/*/events*"))
    assert list(folder.glob("session/**/gcs_server.out")) and (folder / "runs/leaky/report.html").exists()
    assert not leaks(folder) and not [one for one in SECRETS if one in printed]


@pytest.mark.slow
def test_what_was_hidden_is_marked_so(leaky):
    folder, printed = leaky
    rows = Store(folder / "runs/leaky/results").read("trials").to_pylist()
    assert all(f"memory://{HIDDEN}@bucket/runs" in row["provenance.command"] for row in rows if row["status"] == "done")
    (error,) = (row["error"] for row in rows if row["status"] == "failed")
    told = f"memory://{HIDDEN}@bucket/runs refuses {HIDDEN}, Bearer {HIDDEN}"
    assert told in error and told in printed and told in (folder / "runs/leaky/report.html").read_text()
    assert f"copied to memory:///{HIDDEN}@bucket/runs/leaky" in printed


@pytest.mark.slow
def test_a_sweeps_own_ray_listens_to_this_machine_alone(leaky):
    listening = json.loads((leaky[0] / "notes/listening.json").read_text())
    assert {"gcs_server", "raylet"} <= listening.keys()
    everywhere = {address.removeprefix("::ffff:") for found in listening.values() for address in found}
    assert everywhere <= {"127.0.0.1", "::1"}, listening


def test_a_token_is_made_for_its_user_alone_and_an_open_one_is_closed(tmp_path, monkeypatch):
    path = tmp_path / "home" / ".ray" / "auth_token"
    path.parent.parent.mkdir()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", cluster.LOOPBACK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with cluster.private():
        assert not path.parent.exists()
    monkeypatch.delenv("RAY_AUTH_MODE")
    with cluster.private():
        token = path.read_text()
        assert re.fullmatch("[0-9a-f]{64}", token) and os.environ[cluster.LOOPBACK] == "0"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path] and cluster.LOOPBACK not in os.environ
    path.chmod(0o644)
    monkeypatch.setenv(cluster.LOOPBACK, "1")  # who wants all interfaces keeps them
    with cluster.private():
        assert os.environ[cluster.LOOPBACK] == "1" and path.read_text() == token
    assert path.stat().st_mode & 0o777 == 0o600


ADDRESS = f"//KEYNAME:{PASSWORD}@host/runs"
COMMANDS = (
    f"results s3:{ADDRESS}",
    f"status ftp:{ADDRESS}",
    f"results memory:{ADDRESS}",
    f"report nope:{ADDRESS}",
    f"report . --out nope:{ADDRESS}",
    f"merge memory:{ADDRESS} memory:{ADDRESS} --out x",
    f"merge . . --out nope:{ADDRESS}",
    f"sweep r.py --out s3:{ADDRESS}",
    f"sweep r.py --copy-to s3:{ADDRESS}",
    f"sweep r.py --data https:{ADDRESS}.npz",
    f"sweep r.py --data screen.npz --graph https://host/e.csv?sig={PASSWORD}",
    f"train --data https:{ADDRESS}.npz",
    f"data describe s3:{ADDRESS}",
    f"predict s3:{ADDRESS} --regulator r --dose 1 --state s",
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2])[:14])
def test_an_error_shows_no_password(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "_remembered", set())
    rows = np.arange(24)
    np.savez("screen.npz", reg_idx=rows % 6, dose=np.tile([0.3, 0.9], 12), deltaE=np.ones((24, 6)) * rows[:, None])
    Path("sweep.json").write_text('{"trials": []}')
    Path("r.py").write_text('def recipe(options):\n    return options.sweep("mine", [{}])\n')
    code = main(command.split())
    told = capsys.readouterr()
    assert code == 2 and told.err.count("\n") == 1 and HIDDEN in told.err, told
    assert not [one for one in (PASSWORD, *re.split("[/+]", PASSWORD)) if one in told.out + told.err]


def test_no_answer_of_a_cluster_shows_its_token(monkeypatch):
    monkeypatch.setattr(secrets, "_remembered", set())

    def refuse(address, **_):
        raise ConnectionError(f"{address.partition('//')[2]} does not answer")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(InputError, match="host:10001 does not answer") as raised,
        cluster.connected(f"ray://{VARIABLES['RAY_AUTH_TOKEN']}@host:10001"),
    ):
        pass
    output = io.StringIO()
    Display(Console(file=output, width=200)).say(f"Connecting to Ray at {raised.value.value}")
    assert VARIABLES["RAY_AUTH_TOKEN"] not in str(raised.value) + output.getvalue()
    assert f"ray://{HIDDEN}@host:10001" in output.getvalue()


def test_an_unexpected_error_is_told_without_secrets(monkeypatch, capsys):
    monkeypatch.setattr(secrets, "_remembered", set())
    monkeypatch.setenv("HF_TOKEN", VARIABLES["HF_TOKEN"])
    place(f"memory://me:{PASSWORD}@bucket/runs")
    try:
        raise RuntimeError(f"{PASSWORD} and {VARIABLES['HF_TOKEN']}")
    except RuntimeError as error:
        tell(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and told.endswith(f"RuntimeError: {HIDDEN} and {HIDDEN}\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:ab/cd+e@bucket/x and s3://b/y", "s3://***@bucket/x and s3://b/y"),
        ("s3://bucket/a and me@host.org", None),
        ("https:/me:pw@host/x.npz is no file", "https:/***@host/x.npz is no file"),
        ("'ray://token@host:10001'", "'ray://***@host:10001'"),
        ("https://h/x?X-Amz-Signature=ab12&a=1", "https://h/x?X-Amz-Signature=***&a=1"),
        ("https://h/x?X-Amz-Credential=ab%2F12&X-Amz-Date=1", "https://h/x?X-Amz-Credential=***&X-Amz-Date=1"),
        ("set RAY_AUTH_MODE=token", None),
        ("aws_secret_access_key=abc, region=x", "aws_secret_access_key=***, region=x"),
        ("Authorization: Bearer abcdefghi.jkl", "Authorization: Bearer ***"),
        ("sorted(rows, key=len), tokens=3, the token: 4", None),
        ("by swordfish1 or sword/fish2, sword%2Ffish2", "by *** or ***, ***"),
        ("/etc/hosts, C:/a/b and 12:30", None),
    ],
)
def test_what_is_hidden_in_a_text(monkeypatch, text, shown):
    monkeypatch.setenv("SOME_API_KEY", "swordfish1")
    monkeypatch.setenv("PGPASSWORD", "sword/fish2")
    monkeypatch.setenv("SOME_KEY", "/etc/hosts")  # a path, and no secret
    monkeypatch.setenv("OTHER_TOKEN", "1")
    assert scrubbed(text) == (text if shown is None else shown)


def test_pieces_of_an_address_are_known_after_it_was_used(monkeypatch):
    monkeypatch.setattr(secrets, "_remembered", set())
    remember("ftp://user:one/two2@host/x?sig=three3")
    assert scrubbed("user sees one/two2, two2, three3 and one") == f"user sees {HIDDEN}, {HIDDEN}, {HIDDEN} and one"
