import re

import pytest

from mantra_ray.errors import InputError
from mantra_ray.provenance import code_version, git_state, provenance


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
    assert git_state(tmp_path) == ("", False)


def test_provenance_is_flat_and_names_versions():
    row = provenance()
    assert row["torch"] and row["ray"] and row["python"] and row["device"] and row["command"]
    assert all(isinstance(value, (str, bool)) for value in row.values())
