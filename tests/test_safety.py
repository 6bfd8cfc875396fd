"""No code comes out of a file, no port opens without a word about it, and the page on safety says what is there."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "safety.md").read_text()
SOURCES = [path for folder in ("mantra_ray", "sweeps", "cluster", "analysis", "docs", ".ci") for path in
           sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "cluster" / "airgap" / "bundle"]  # fmt: skip
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "runpy"}
# Functions that run what they read, whatever they are called on.
RUNNING = {"read_pickle", "read_hdf", "unsafe_load", "full_load", "exec_module", "extractall", "unpack_archive"}
LOADERS = {"torch", "np", "numpy", "yaml"}  # whose `load` must be told how
ALLOWED = {
    ("mantra_ray/cli.py", "exec_module"): "a recipe is a program: who names it wants it run",
    ("mantra_ray/data/loadings.py", "import pickle"): "an unpickler that knows arrays of text and nothing else",
}


def constant(call: ast.Call, name: str):
    """The constant that a call gives a keyword; Ellipsis where it gives none."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), ...)


def dangers(source: str) -> list[str]:
    """What in a program may run code that it reads from a file or a text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"import {part}" for name in names for part in name.split(".") if part in PICKLES]
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "yaml"):
                found += [f"{node.module}.load" for alias in node.names if alias.name == "load"]
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        if (not owner and name in ("eval", "exec", "compile", "__import__")) or name in RUNNING:
            found.append(name)
        if owner.split(".")[-1] in PICKLES | {"Tuner"} and name in ("load", "loads", "Unpickler", "open", "restore"):
            found.append(f"{owner}.{name}")
        if owner in ("torch.jit", "torch.hub", "torch.package") or f"{owner}.{name}" in ("os.system", "os.popen"):
            found.append(f"{owner}.{name}")
        if any(k.arg == "allow_pickle" for k in node.keywords) and constant(node, "allow_pickle") is not False:
            found.append("allow_pickle")
        if any(k.arg == "shell" for k in node.keywords) and constant(node, "shell") is not False:
            found.append("shell")
        if name == "load" and owner in LOADERS:
            safe = {"torch": constant(node, "weights_only") is True, "yaml": False}
            if not safe.get(owner, constant(node, "allow_pickle") is False):
                found.append(f"{owner}.load")
    return found


@pytest.mark.parametrize(
    "program",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import ray.cloudpickle as p",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "from torch import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(handle, allow_pickle=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pd.read_pickle(path)",
        "eval(text)",
        "exec(text)",
        "tar.extractall(folder)",
        "shutil.unpack_archive(path)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tune.Tuner.restore(path)",
        "torch.jit.load(path)",
    ],
)
def test_the_search_finds_what_runs_code(program):
    assert dangers(program)


def test_the_search_passes_what_is_safe():
    safe = (
        "torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\njson.load(f)\nFold.load(p)\nmodel.eval()\n"
    )
    assert not dangers(safe + "re.compile(p)\nyaml.safe_load(t)\nsubprocess.run([p])\nstore.restore(n)")


def test_no_code_comes_out_of_a_file():
    assert len(SOURCES) > 150
    found = {(str(path.relative_to(ROOT)), danger) for path in SOURCES for danger in dangers(path.read_text())}
    notebooks = sorted((ROOT / "analysis").glob("*.ipynb"))
    for path in notebooks:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        found |= {(path.name, danger) for cell in cells for danger in dangers("".join(cell["source"]))}
    # `pickle.Unpickler`, subclassed, is no call: the import stands for it.
    assert found == set(ALLOWED)


def uncommented(path: Path) -> str:
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in path.read_text().splitlines())


CLUSTER = [path for path in sorted((ROOT / "cluster").rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
# What lets others in.
OPEN = re.compile(
    r"0\.0\.0\.0|\[::\]|hostNetwork|hostPort|NodePort|LoadBalancer|^EXPOSE|bind_all|\bIngress:", re.MULTILINE
)
ROWS = {
    name: row
    for row in re.findall(r"^\| .*\|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`([\w.-]+)`", row.split("|")[1])
}  # of the tables, by what their first column names


def test_nothing_in_a_cluster_file_opens_without_a_word_about_it():
    opening = {path.name: sorted(set(OPEN.findall(uncommented(path)))) for path in CLUSTER}
    opening = {name: found for name, found in opening.items() if found}
    assert opening == {"rayjob.yaml": ["0.0.0.0"]}
    for name, found in opening.items():
        head = next(path for path in CLUSTER if path.name == name).read_text().partition("apiVersion")[0]
        assert "listens on the pod's interfaces" in head and all(word in ROWS[name] for word in found)


def test_the_page_tells_of_every_file_that_starts_ray_and_of_its_ports():
    start = re.compile(r"\bray\b.*\bstart\b|scripts start|rayClusterSpec|kind: RayCluster|^FROM", re.MULTILINE)
    starting = [path for path in CLUSTER if start.search(uncommented(path))]
    assert {path.name for path in starting} >= {"aws.yaml", "gcp.yaml", "one_host.sh", "slurm.sbatch", "rayjob.yaml"}
    for path in starting:
        assert path.name in ROWS, path
        if path.suffix != ".yaml" or path.name in ("aws.yaml", "gcp.yaml"):
            assert "RAY_AUTH_MODE=token" in path.read_text(), path
        else:
            assert re.search(r"authOptions:\s+mode: token", path.read_text()), path
        for port in re.findall(r"-port[= ]\"?\$?\{?(?:PORT:-)?(\d{2,5})", uncommented(path)):
            assert port in ROWS[path.name], (path, port)
        dashboards = re.findall(r"dashboard-host[=: ]+([\d.]+)", uncommented(path))
        assert set(dashboards) <= {"127.0.0.1"} or path.name == "rayjob.yaml", path


def test_the_package_itself_serves_nobody():
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"0\.0\.0\.0|http\.server|socketserver|\.bind\(|include_dashboard\W+True", text), path
        starts = re.search(r"\bray\.init\(|cluster_utils", text) and "mantra_ray" in path.parts
        assert not starts or path.name in ("cluster.py", "fault_host.py"), path
    assert "mantra bench faults" in PAGE  # whose nodes serve this machine
    assert not any("bind_all" in page.read_text() for page in (ROOT / "docs").glob("*.md"))


def test_the_page_names_files_and_tests_that_are_there():
    for name in set(re.findall(r"`((?:tests|cluster|\.ci)/[\w./-]*)`", PAGE)):
        assert (ROOT / name).exists(), name
    known = {path.name for path in CLUSTER} | {"vocab.json", "sweep.json", "requirements.txt"}
    assert {name for name in re.findall(r"`([\w-]+\.(?:yaml|sh|sbatch|json|txt))`", PAGE)} <= known


def corpus() -> str:
    """The table of malformed files: format, kinds of damage, how many."""
    spec = importlib.util.spec_from_file_location("malformed", ROOT / "tests" / "test_malformed.py")
    malformed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(malformed)
    kinds: dict[str, list[str]] = {}
    for case in malformed.CASES:
        form, _, damage = case.partition(": ")
        kinds.setdefault(form, []).append(damage)
    rows = [f"| {form} | {', '.join(found)} | {len(found)} |" for form, found in kinds.items()]
    return "\n".join(["| format | damage | files |", "|---|---|---|", *rows, f"| all | | {len(malformed.CASES)} |"])


def test_the_table_of_malformed_files_is_that_of_the_tests():
    assert PAGE.endswith(f"\n\n{(table := corpus())}\n"), f"stale: the table is now\n{table}"
