#!/usr/bin/env python3
"""Looks for known vulnerabilities of the pinned packages, by pip-audit; `make audit` and `.ci/run` call it.

Exit code 0: none is known, or nobody could be asked, which one line says. 1: some are known. 2: nobody could be asked
and AUDIT_REQUIRED=1, or a file cannot be used. Standard library alone.

pip-audit ends with 0 where an index knows no advisories, as mirrors of PyPI do. So a service is first asked about a
release whose vulnerabilities have been known for years, and counts as reached only if it tells of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / ".venv-audit" / "bin" / "pip-audit"
IGNORED = ROOT / ".ci" / "audit-ignore.txt"
FILES = ("requirements.txt", "cluster/requirements*.txt", "analysis/requirements.txt", ".ci/audit-requirements.txt")
SERVICES = ("osv", "pypi")  # api.osv.dev, and the JSON of pypi.org
CANARY = ("jinja2", "2.10")  # CVE-2019-10906
PATIENCE = 15, 600  # seconds: of a request, of a whole audit
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;+]+)(\+\S+)?(\s*;.*)?")
WHEEL = re.compile(r"([A-Za-z0-9_.]+)-([^-+]+)(\+[^-]+)?-.*\.whl")

Pins = dict[tuple[str, str], list[str]]  # name and version -> files


def main(args: list[str] | None = None) -> int:
    """Run the audit; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help=f"requirement files (default: {', '.join(FILES)})")
    parser.add_argument("--also", default="", help="one more package, NAME==VERSION or FILE.whl: torch")
    parser.add_argument("--tool", default=str(TOOL), help="pip-audit")
    parser.add_argument("--ignored", type=Path, default=IGNORED, help="advisories that are passed over, with reasons")
    parser.add_argument("--osv-url", default="", help="another address of OSV's query")
    options = parser.parse_args(args)
    files = options.files or [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]
    pins = read_pins(files, options.also)
    reasons = read_reasons(options.ignored)
    required = os.environ.get("AUDIT_REQUIRED", "") not in ("", "0")
    for service in SERVICES:
        words = [options.tool, "--vulnerability-service", service]
        words += ["--osv-url", options.osv_url] if service == "osv" and options.osv_url else []
        told = ask(words, [CANARY])
        if told and told[0].get("vulns") and (told := ask(words, pins)) is not None:
            return judge(told, pins, reasons, service, required)
    said = "pip-audit is not installed" if not Path(options.tool).exists() else "no advisory service answers"
    print(
        f"NOT AUDITED: {said}, so {len(pins)} pinned packages were compared with nothing (AUDIT_REQUIRED=1: an error)"
    )
    return 2 if required else 0


def judge(told: list[dict], pins: Pins, reasons: dict[str, str], service: str, required: bool) -> int:
    """Print what a service told; returns the exit code."""
    used, wrong, unknown = set(), 0, 0
    for package in told:
        name = package["name"]
        if "skip_reason" in package:
            unknown += 1
            print(f"NOT AUDITED: {name}: {package['skip_reason']}")
        for found in package.get("vulns", ()):
            names = [found["id"], *found.get("aliases", ())]
            where = f"{name} {package['version']} ({', '.join(pins[plain(name), package['version']])})"
            if known := [one for one in names if one in reasons]:
                used.update(known)
                print(f"passed over: {where}: {known[0]}: {reasons[known[0]]}")
                continue
            wrong += 1
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"VULNERABLE: {where}: {' = '.join(names)}, fixed in {fixed}")
    for name in reasons.keys() - used:
        print(f"no longer found, to be taken from {IGNORED.name}: {name}")
    print(f"audit by {service}: {len(told) - unknown} of {len(pins)} pinned packages, {wrong} known vulnerabilities")
    return 1 if wrong else 2 * (required and unknown > 0)


def ask(words: list[str], pins: Iterable[tuple[str, str]]) -> list[dict] | None:
    """What pip-audit tells of each package; None if it has no answer."""
    rounds: list[dict[str, str]] = []  # it refuses two versions of one package
    for name, version in pins:
        free = next((part for part in rounds if name not in part), None)
        if free is None:
            rounds.append(free := {})
        free[name] = version
    told = []
    for part in rounds:
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "requirements.txt"
            listed.write_text("".join(f"{name}=={version}\n" for name, version in part.items()))
            plainly = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
            line = [*words, *plainly, "--timeout", str(PATIENCE[0]), "--requirement", str(listed)]
            try:
                done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE[1], check=False)
                told += json.loads(done.stdout)["dependencies"]
            except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
                return None
    return told


def read_pins(files: Iterable[Path], also: str) -> Pins:
    """Every pinned package; exits where a line pins none."""
    pins: Pins = {}
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line := line.partition("#")[0].strip():
                add(pins, line, PIN, str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path), number)
    if also:
        add(pins, Path(also).name, WHEEL if also.endswith(".whl") else PIN, "--also", 1)
    return pins


def add(pins: Pins, text: str, form: re.Pattern, file: str, number: int) -> None:
    """Take one pin."""
    found = form.fullmatch(text)
    if found is None:
        print(f"error: {file}: line {number}: is no NAME==VERSION (found {text!r})", file=sys.stderr)
        raise SystemExit(2)
    files = pins.setdefault((plain(found[1]), found[2]), [])
    files += [] if file in files else [file]


def read_reasons(path: Path) -> dict[str, str]:
    """Advisories that are passed over, and why; exits where a line gives no reason."""
    reasons = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.strip().partition(" ")
            if not reason.strip():
                print(f"error: {path}: line {number}: an advisory and the reason are wanted", file=sys.stderr)
                raise SystemExit(2)
            reasons[name] = reason.strip()
    return reasons


def plain(name: str) -> str:
    """A package's name in the one form that names are compared in."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
