"""The memory can be lifted out: it needs the configuration and torch, and nothing else of the package."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mantra_ray

PACKAGE = Path(mantra_ray.__file__).parent
SCRIPT = """
import importlib, json, sys
for name in {names}:
    importlib.import_module("mantra_ray.nexus." + name)
import mantra_ray
print(json.dumps([mantra_ray.__file__, sorted(sys.modules)]))
"""
ALLOWED = {"mantra_ray", "mantra_ray.config", "mantra_ray.nexus"}
HEAVY = {"ray", "sklearn", "torch_geometric", "pandas", "pyarrow", "tyro", "rich", "tensorboardX"}


def test_nexus_and_config_alone_can_be_imported(tmp_path):
    alone = tmp_path / "mantra_ray"
    shutil.copytree(PACKAGE / "nexus", alone / "nexus", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "config.py"):
        shutil.copy(PACKAGE / name, alone / name)
    modules = sorted(path.stem for path in (PACKAGE / "nexus").glob("*.py") if path.stem != "__init__")
    if find_spec("triton") is None:  # not to be had on every platform, and needed on a GPU alone
        modules = [name for name in modules if not name.endswith("kernels")]
    assert {"adapter", "cam", "reader", "records", "routing", "tokens", "transformer", "warming"} <= set(modules)
    # -I: no folder of the caller, no PYTHONPATH; the copy comes first, before an installed package
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + SCRIPT.format(names=modules)
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, imported = json.loads(done.stdout)
    assert Path(where).parent == alone
    ours = {name for name in imported if name.split(".")[0] == "mantra_ray"}
    assert ours - ALLOWED == {f"mantra_ray.nexus.{name}" for name in modules}
    assert not {name.split(".")[0] for name in imported} & HEAVY
