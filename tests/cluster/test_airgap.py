"""The bundle for hosts without internet, on wheels that are made here; no registry is asked."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

NOWHERE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""}


def make_wheel(folder, name, version, needs=""):
    """A pure-Python wheel of one module, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata + (f"Requires-Dist: {needs}\n" if needs else ""))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, root):
    """Folder of a bundle of two tiny wheels, one of which needs the other."""
    folder = tmp_path_factory.mktemp("bundle")
    make_wheel(folder / "shelf", "tinya", "1.2", needs="tinyb>=3")
    make_wheel(folder / "shelf", "tinyb", "3.0")
    make_wheel(folder / "shelf", "tinyb", "2.0")
    (folder / "wanted.txt").write_text("tinya==1.2\n")
    done = subprocess.run(
        [root / "cluster/airgap/bundle", "--out", folder / "mantra.tar", "--only", folder / "wanted.txt"],
        env=os.environ
        | NOWHERE
        | {"PIP_FIND_LINKS": str(folder / "shelf"), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 wheels" in done.stdout
    return folder


@pytest.fixture
def unpacked(bundled, tmp_path):
    with tarfile.open(bundled / "mantra.tar") as tar:
        assert {(member.uid, member.uname) for member in tar} == {(0, "")}
        assert all(member.isfile() or member.isdir() for member in tar)
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "mantra"


def install(folder, *arguments):
    elsewhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_REQUIRE_VIRTUALENV": "0"}
    return subprocess.run([folder / "install", *arguments], env=os.environ | elsewhere, capture_output=True, text=True)


def test_the_archive_says_what_it_holds(bundled, unpacked, root):
    assert subprocess.run(["sha256sum", "-c", "mantra.tar.sha256"], cwd=bundled, capture_output=True).returncode == 0
    names = sorted(path.name for path in (unpacked / "wheels").iterdir())
    assert names == ["tinya-1.2-py3-none-any.whl", "tinyb-3.0-py3-none-any.whl"]
    assert [line.split("  ")[1] for line in (unpacked / "SHA256SUMS").read_text().splitlines()] == [
        f"wheels/{name}" for name in names
    ]
    assert {path.name for path in (unpacked / "sweeps").iterdir()} == {
        path.name for path in (root / "sweeps").glob("*.py")
    }
    assert not list(bundled.glob(".*partial"))


def test_an_environment_is_made_of_the_wheels_alone(unpacked, tmp_path):
    done = install(unpacked, tmp_path / "env", sys.executable)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [tmp_path / "env/bin/python", "-c", "import tinya, tinyb; print(tinya.VERSION, tinyb.VERSION)"],
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == ["1.2", "3.0"]
    assert install(unpacked, tmp_path / "env", sys.executable).returncode == 2  # exists already


def test_a_link_is_not_packed(script, tmp_path):
    (tmp_path / "mantra").mkdir()
    (tmp_path / "mantra" / "wheels").symlink_to("/etc")
    with pytest.raises(SystemExit, match="mantra/wheels is a link"):
        script("airgap/bundle").write(tmp_path / "mantra", tmp_path / "mantra.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["mantra"]


def test_damage_a_missing_wheel_and_another_python_are_refused(unpacked, tmp_path):
    wheel = unpacked / "wheels/tinyb-3.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = install(unpacked, tmp_path / "env", sys.executable)
    assert done.returncode == 2 and "damaged" in done.stderr and not (tmp_path / "env").exists()
    wheel.unlink()
    assert install(unpacked, tmp_path / "env", sys.executable).returncode == 2
    wheel.write_bytes(whole)
    (unpacked / "python").write_text("3.9\n")
    done = install(unpacked, tmp_path / "env", sys.executable)
    assert done.returncode == 2 and "Python 3.9" in done.stderr and not (tmp_path / "env").exists()


def test_pip_is_told_of_other_hosts_and_of_nothing_for_hosts_like_this(script):
    bundle = script("airgap/bundle")
    here = "{}.{}".format(*sys.version_info)
    assert bundle.foreign_options(here, []) == []
    words = bundle.foreign_options("3.13", ["manylinux_2_28_aarch64"])
    assert words[:2] == ["--python-version", "3.13"] and "--only-binary=:all:" in words
    assert words[words.index("--platform") + 1] == "manylinux_2_28_aarch64"
    assert bundle.foreign_options("3.13", []).count("--platform") == len(bundle.OLDER)
    assert bundle.foreign_options(here, ["manylinux_2_28_aarch64"])


def test_the_packages_own_wheel_holds_all_of_it(script, root, tmp_path, monkeypatch):
    bundle = script("airgap/bundle")
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    copy = bundle.source(tmp_path)
    bundle.pip("wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", copy)
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if name.endswith(".py")}
    assert names == {str(path.relative_to(root)) for path in (root / "mantra_ray").rglob("*.py")}
    with pytest.raises(SystemExit, match="pip download failed"):
        bundle.pip("download", "--dest", tmp_path / "none", "no-such-package-here")
