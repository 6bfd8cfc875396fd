"""The audit of pinned packages: it fails on what is known, passes over what has a reason, says if nobody answers."""

import importlib.util
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)
# Stands for pip-audit: a service that knows some advisories, one that answers that it knows no package, or none.
TOOL = """#!{python}
import json, sys
from pathlib import Path
known, answering = {known!r}, {answering!r}
words = sys.argv[1:]
service, listed = (words[words.index(name) + 1] for name in ("--vulnerability-service", "--requirement"))
with open({log!r}, "a") as log:
    print(service, Path(listed).read_text().split(), file=log)
if service not in answering:
    sys.exit("ConnectionError: " + service)
told = []
for line in Path(listed).read_text().split():
    name, _, version = line.partition("==")
    if answering[service] == "empty" or name in answering[service].split():
        told.append({{"name": name, "skip_reason": "not found: " + line}})
    else:
        told.append({{"name": name, "version": version, "vulns": known.get(line, [])}})
print(json.dumps({{"dependencies": told, "fixes": []}}))
sys.exit(any(one.get("vulns") for one in told))
"""
OLD = {"id": "PYSEC-1", "aliases": ["CVE-2018-1", "GHSA-a"], "fix_versions": ["2.20.0"], "description": "bad"}
NEW = {"id": "PYSEC-2", "aliases": [], "fix_versions": [], "description": "bad"}
CANARY = {"{}=={}".format(*audit.CANARY): [OLD]}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Audits a file of pins by a stand-in for pip-audit; gives exit code, output and what the tool was asked."""

    def go(pins, answering, known=None, reasons="", required="", more=()):
        monkeypatch.setenv("AUDIT_REQUIRED", required)
        tool, log = tmp_path / "pip-audit", tmp_path / "log"
        log.write_text("")
        values = {"known": CANARY | (known or {}), "answering": answering, "log": str(log), "python": sys.executable}
        tool.write_text(TOOL.format(**values))
        tool.chmod(0o755)
        (tmp_path / "pins.txt").write_text(pins)
        (tmp_path / "reasons.txt").write_text(reasons)
        words = [str(tmp_path / "pins.txt"), "--tool", str(tool), "--ignored", str(tmp_path / "reasons.txt"), *more]
        return audit.main(words), capsys.readouterr().out, log.read_text().splitlines()

    return go


def test_it_passes_where_nothing_is_known(run):
    code, told, asked = run("# a comment\nNumPy==2.4.6\ntriton==3.7.1; sys_platform == 'linux'\n", {"osv": "all"})
    assert code == 0 and told == "audit by osv: 2 of 2 pinned packages, 0 known vulnerabilities\n"
    assert asked == ["osv ['jinja2==2.10']", "osv ['numpy==2.4.6', 'triton==3.7.1']"]


def test_it_fails_on_a_known_vulnerability_and_names_it(run):
    code, told, _ = run("requests==2.5.0\nnumpy==2.4.6\n", {"osv": "all"}, {"requests==2.5.0": [OLD, NEW]})
    assert code == 1 and "2 of 2 pinned packages, 2 known" in told
    assert re.search(
        r"VULNERABLE: requests 2.5.0 \(\S+pins.txt\): PYSEC-1 = CVE-2018-1 = GHSA-a, fixed in 2.20.0", told
    )
    assert "PYSEC-2, fixed in no version yet" in told


def test_where_nobody_answers_it_says_so_and_passes_unless_it_must(run):
    for answering in ({}, {"osv": "empty", "pypi": "empty"}):  # as mirrors answer, at which pip-audit passes
        code, told, asked = run("requests==2.5.0\n", answering, {"requests==2.5.0": [OLD]})
        assert code == 0 and told.count("\n") == 1 and told.startswith("NOT AUDITED: no advisory service answers")
        assert len(asked) == 2 and all("requests" not in line for line in asked)
        assert run("requests==2.5.0\n", answering, required="1")[0] == 2
        assert run("requests==2.5.0\n", answering, required="0")[0] == 0


def test_the_second_service_is_asked_where_the_first_does_not_answer(run):
    code, told, asked = run("requests==2.5.0\n", {"osv": "empty", "pypi": "all"}, {"requests==2.5.0": [OLD]})
    assert code == 1 and "audit by pypi" in told and [line.split()[0] for line in asked] == ["osv", "pypi", "pypi"]


def test_what_a_service_does_not_know_is_told(run):
    code, told, _ = run("ours==1.0\nnumpy==2.4.6\n", {"osv": "ours"})
    assert code == 0 and "NOT AUDITED: ours: not found: ours==1.0" in told and "1 of 2 pinned packages" in told
    assert run("ours==1.0\nnumpy==2.4.6\n", {"osv": "ours"}, required="1")[0] == 2


def test_without_the_tool_it_says_so(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIT_REQUIRED", "1")
    (tmp_path / "pins.txt").write_text("numpy==2.4.6\n")
    assert audit.main([str(tmp_path / "pins.txt"), "--tool", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().out.startswith("NOT AUDITED: pip-audit is not installed")


def test_an_advisory_with_a_reason_is_passed_over_and_one_that_is_gone_is_told(run):
    reasons = "# why\nCVE-2018-1 its redirects are never followed\nCVE-3 gone\n"
    code, told, _ = run("requests==2.5.0\n", {"osv": "all"}, {"requests==2.5.0": [OLD]}, reasons)
    assert code == 0 and "CVE-2018-1: its redirects are never followed" in told and "VULNERABLE" not in told
    assert re.search(r"no longer found, .*: CVE-3\n", told)
    with pytest.raises(SystemExit) as end:
        run("requests==2.5.0\n", {"osv": "all"}, reasons="CVE-2018-1\n")
    assert end.value.code == 2


def test_two_versions_of_a_package_are_both_asked_and_torch_besides(run):
    wheel = "elsewhere/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    _, told, asked = run("a-b==1\nA_B==2\n", {"osv": "all"}, more=["--also", wheel])
    assert asked[1:] == ["osv ['a-b==1', 'torch==2.13.0']", "osv ['a-b==2']"] and "3 of 3" in told


@pytest.mark.parametrize("line", ["requests>=2", "requests", "-r other.txt", "https://host/x.whl", "requests==2 -e ."])
def test_a_line_that_pins_nothing_is_refused(run, capsys, line):
    with pytest.raises(SystemExit) as end:
        run(f"numpy==2.4.6\n{line}\n", {"osv": "all"})
    assert end.value.code == 2 and "line 2: is no NAME==VERSION" in capsys.readouterr().err


def test_every_requirement_file_is_audited_in_ci_and_torch_too():
    pins = audit.read_pins([path for pattern in audit.FILES for path in ROOT.glob(pattern)], "torch==1")
    audited = {name for files in pins.values() for name in files}
    ours = [path for path in ROOT.iterdir() if path.name == ".ci" or path.name[0] != "."]
    found = [file for path in ours for file in ([path] if path.is_file() else path.rglob("*.txt"))]
    named = {str(path.relative_to(ROOT)) for path in found if re.fullmatch(r".*requirements.*\.txt", path.name)}
    assert audited - {"--also"} == {name for name in named if name.split("/")[0] not in ("runs", "out")}
    assert ("torch", "1") in pins and ("ray", "2.60.0") in pins
    assert re.search(r"^make .*\baudit\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert re.search(r"audit\.py --also .\$\(TORCH\)", (ROOT / "Makefile").read_text())
    audit.read_reasons(audit.IGNORED)


class Osv(BaseHTTPRequestHandler):
    """OSV's query, for two releases."""

    known = (("jinja2", "2.10", "CVE-2019-10906"), ("requests", "2.5.0", "CVE-2018-18074"))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, version = asked["package"]["name"], asked["version"]
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}]
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
        found = [
            {"id": one, "summary": "bad", "affected": affected} for *who, one in self.known if who == [name, version]
        ]
        body = json.dumps({"vulns": found} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.skipif(not audit.TOOL.exists(), reason="pip-audit is not installed: make audit")
def test_pip_audit_itself_is_understood(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUDIT_REQUIRED", "1")
    (tmp_path / "pins.txt").write_text("requests==2.5.0\nnumpy==2.4.6\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        code = audit.main([str(tmp_path / "pins.txt"), "--osv-url", address])
        server.shutdown()
    told = capsys.readouterr().out
    assert code == 1 and "CVE-2018-18074, fixed in 9.9" in told and "2 of 2 pinned packages, 1 known" in told
