import platform
import re
import subprocess
from types import SimpleNamespace

import pytest

from mantra_ray.errors import InputError
from mantra_ray.provenance import code_version, git_state, lock_hash, provenance, without_secrets


def test_code_version_follows_the_parts_named():
    versions = {code_version(), code_version("cascade"), code_version("cascade", "data"), code_version("forward")}
    assert len(versions) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", version) for version in versions)
    assert code_version("data", "cascade") == code_version("cascade", "data")
    assert code_version("cascade.energy", "cascade") == code_version("cascade")


def test_code_version_changes_with_content_not_with_time(tmp_path, monkeypatch):
    module = tmp_path / "module.py"
    module.write_text("x = 1\n")
    monkeypatch.setattr("mantra_ray.provenance.PACKAGE", tmp_path)
    code_version.cache_clear()
    first = code_version("module")
    code_version.cache_clear()
    module.touch()
    assert code_version("module") == first
    code_version.cache_clear()
    module.write_text("x = 2\n")
    assert code_version("module") != first
    code_version.cache_clear()


def test_unknown_part_is_an_input_error():
    with pytest.raises(InputError, match="no_such_part"):
        code_version("no_such_part")


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert git_state(tmp_path) == ("", False, "")


def test_a_commit_and_what_was_changed_since(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    module = tmp_path / "module.py"
    module.write_text("x = 1\n")
    git("init")
    git("add", "module.py")
    git("commit", "-m", "first")
    commit, dirty, changes = git_state(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", commit) and not dirty and changes == ""
    hashes = []
    for text in ("x = 2\n", "x = 3\n", "x = 2\n"):
        module.write_text(text)
        assert git_state(tmp_path)[:2] == (commit, True)
        hashes.append(git_state(tmp_path)[2])
    assert hashes[0] == hashes[2] != hashes[1]
    git("add", "module.py")  # staged changes count like others
    assert git_state(tmp_path) == (commit, True, hashes[0])


def test_provenance_is_flat_and_names_versions():
    row = provenance()
    assert row["torch"] and row["ray"] and row["python"] and row["device"] and row["command"]
    assert re.fullmatch("[0-9a-f]{16}", row["lock"]) and platform.node() not in map(str, row.values())
    assert all(isinstance(value, (str, bool)) for value in row.values())


def test_the_lock_is_that_of_the_installed_versions(monkeypatch):
    def installed(**versions):
        found = [SimpleNamespace(name=name, version=version) for name, version in versions.items()]
        monkeypatch.setattr("mantra_ray.provenance.metadata.distributions", lambda: found)
        return lock_hash()

    assert installed(a="1", b="2") == installed(b="2", a="1") != installed(a="1", b="3")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--seeds", "3", "--nexus.top-programs=4"], None),
        (["tokens", "build", "--traits", "MCH=mch.csv"], None),
        (["--api-key", "abc", "--seeds", "3"], ["--api-key", "***", "--seeds", "3"]),
        (["--hf-token=abc", "x"], ["--hf-token=***", "x"]),
        (["--token", "--seeds", "3"], None),
        (["AWS_SECRET_ACCESS_KEY=abc"], ["AWS_SECRET_ACCESS_KEY=***"]),
        (["--out", "s3://user:pass@host/runs"], ["--out", "s3://***@host/runs"]),
        (["https://host/file?sig=abc&x=1"], ["https://host/file?sig=***&x=1"]),
        (["say", "hf_" + "a" * 30], ["say", "***"]),
    ],
)
def test_secrets_are_left_out_of_the_command(given, shown):
    assert without_secrets(given) == (given if shown is None else shown)
