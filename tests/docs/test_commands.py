"""Every command and script in README.md and docs/*.md runs, in the order of its page, on tiny budgets.

A line runs as it stands unless `RULES` says otherwise. What cannot run at all is checked another way, and the rule says
why. A program that is neither one of `mantra` and Python nor named by a rule fails.
"""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard import program

from mantra_ray import cli
from mantra_ray.sweep import runner
from mantra_ray.training import stages
from mantra_ray.training.distributed import save_unit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS, SHOWN = ("sh", "bash", "console"), ("", "text", "json", "yaml", "sql")
ELSEWHERE = {("results.md", "python"): "tests/test_docs.py", ("results.md", "sql"): "tests/test_docs.py"}
TINY = " --smoke --seeds 1 --splits seen"
MAIN = "python sweeps/cam_geometry.py" + TINY
SMALL = (
    " --grn.epochs 1 --grn.folds 2 --grn.hidden 8 --grn.layers 1 --nexus.epochs 1 --nexus.language-epochs 1"
    " --nexus.d-model 16 --nexus.heads 2 --programs.k 4 --programs.restarts 1 --evaluation.bootstrap 20"
)
SIMULATED = (
    " --simulation.regulators 80 --simulation.genes 80 --simulation.doses 0.5 0.95 --simulation.programs 6 --genes 0"
)


@dataclass(frozen=True)
class Rule:
    """What is done with the lines that `pattern` matches."""

    pattern: str
    add: str = ""  # options behind the line: a smaller budget
    swap: tuple[str, str] = ("", "")  # a placeholder, and what stands for it
    first: str = ""  # a shell command before it: what the reader has and the test has not
    how: str = "run"  # else the name of a check below
    why: str = ""


RULES = (
    Rule(r"make ", how="make", why="it would install an environment, run this very suite, or what the next line runs"),
    Rule(r"sha256sum|/opt/mantra", how="syntax", why="needs a bundle; tests/cluster/test_airgap.py installs one"),
    Rule(r"cluster/airgap/bundle", how="options", why="it downloads; tests/cluster/test_airgap.py makes a bundle"),
    Rule(r".*--data morphic", how="parse", why="its files are not here; tests/data/test_catalog.py reads such files"),
    Rule(r".*--loadings W", how="load", why="own_screen.md runs such a sweep to its end"),
    Rule(r".*sweeps/(joint|ablation)\.py", how="load", why="tests/test_scripts.py runs them to their end"),
    Rule(r".*regret_gate\.py", how="load", why="other recipes run to their end"),
    Rule(r".*sharpness\.py", how="load", why="hiding.py on the same page runs to its end"),
    Rule(r".*--name first", TINY, first="[ -d runs/first ] || cp -r runs/cam_geometry runs/first"),
    Rule(r".*sweep(s/\w+\.py| )", TINY),
    Rule(r".*mantra train .*--data", SMALL),
    Rule(r".*mantra train ", SMALL + SIMULATED),
    Rule(r".*mantra tokens build", SIMULATED),
    Rule(r".*mantra programs ", " --programs.restarts 2 --programs.iterations 20"),
    Rule(r".*mantra predict runs/", how="winner"),
    Rule(r".*mantra reproduce ", swap=("TRIAL", "{trial}")),
    Rule(r".*mantra report .*FOLDER", swap=("FOLDER", "out/report")),
    Rule(r".*mantra merge ", first="for name in one two; do cp -r runs/cam_geometry runs/$name; done"),
    Rule(r"printf "),
    Rule(r"\S*tensorboard ", how="board", why="it ends when it is stopped; tests/sweep/test_browser.py opens one"),
    Rule(r"ssh ", how="syntax", why="there is no such host"),
)


@dataclass(frozen=True)
class Step:
    """A command line, or a Python block, and the line of the page where it stands."""

    line: int
    kind: str
    text: str


def steps(text: str) -> list[Step]:
    """Commands of shell blocks, fenced or indented, and Python blocks, in their order."""
    found, fence, block, before, lines = [], None, [], "", text.splitlines()
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("```"):
            if fence is not None and fence not in SHELLS:
                found += [Step(number - len(block), fence, textwrap.dedent("\n".join(block)))] if block else []
            fence, block, before = (line.strip()[3:], [], "") if fence is None else (None, [], "")
            continue
        if fence is not None and fence not in SHELLS:
            block.append(line)
            continue
        code = fence in SHELLS or (line.startswith("    ") and (not before.strip() or before.startswith(("#", "    "))))
        before = line if code or not line.startswith("    ") else "text"
        if not code or not line.strip():
            continue
        if found and found[-1].kind == "sh" and found[-1].text.endswith("\\"):
            last = found.pop()
            found.append(Step(last.line, "sh", last.text[:-1].rstrip() + " " + uncommented(line)))
        else:
            found.append(Step(number, "sh", uncommented(line)))
    return found


def uncommented(line: str) -> str:
    return re.sub(r"\s+# .*$", "", line.strip()).removeprefix("$ ")


class Reached(BaseException):
    """A sweep got as far as it was to get."""


@pytest.fixture
def checks(run, folder, monkeypatch):
    """What can be done with a line, by the name that rules call it by; each raises AssertionError if it is wrong."""

    def plain(line: str, rule: Rule, code: int = 0) -> str:
        if rule.swap[1] == "{trial}":
            rows = sorted((folder / "runs" / "cam_geometry" / "results" / "trials").glob("*.parquet"))
            line = line.replace(rule.swap[0], rows[0].stem)
        elif rule.swap[0]:
            line = line.replace(*rule.swap)
        if rule.first:
            assert run(f"bash -ec {shlex.quote(rule.first)}").code == 0, rule.first
        done = run(line + rule.add)
        alarmed = done.code == 1 and "ALARM" in done.out and " 0 failed" in done.out  # so small a sweep may ring one
        assert done.code == code or alarmed, f"exit code {done.code}: {done.err or done.out}"
        return done.out

    def parse(line: str, rule: Rule) -> None:
        """Options, their values and the recipe are sound."""
        with monkeypatch.context() as patch:
            patch.setattr(cli, "run_sweep", lambda *_: 0)
            plain(line, rule)

    def load(line: str, rule: Rule) -> None:
        """The same, and so are data and splits: the sweep is about to start Ray."""

        def connected(address: str) -> None:
            raise Reached

        with monkeypatch.context() as patch:
            patch.setattr(runner, "connected", connected)
            try:
                done = run(line)
            except Reached:
                return
        raise AssertionError(done.err or done.out)

    def make(line: str, rule: Rule) -> None:
        """There is such a target."""
        targets = [word for word in shlex.split(line)[1:] if "=" not in word]
        assert run(f"make -n {shlex.join(targets)}").code == 0

    def options(line: str, rule: Rule) -> None:
        """Its help tells of the options."""
        script, *words = shlex.split(line)
        told = run(f"{script} --help")
        assert told.code == 0 and all(word in told.out for word in words if word.startswith("--"))

    def syntax(line: str, rule: Rule) -> None:
        """A shell can read it."""
        assert run(f"bash -nc {shlex.quote(line)}").code == 0

    def winner(line: str, rule: Rule) -> None:
        """It predicts, or where nothing is trained yet says how; that is then run, so that it predicts next time."""
        sweep = shlex.split(line)[2]
        if (folder / sweep / "checkpoints").exists():
            plain(line, rule)
            return
        told = plain(line, rule, code=2)
        commands = [words.strip() for words in told.splitlines() if words.startswith("  mantra train ")]
        assert commands, told
        for command in commands:
            assert run(command).code == 0, command

    def board(line: str, rule: Rule) -> None:
        """TensorBoard takes the options, and there is something to show."""
        board = program.TensorBoard()
        board.configure(["tensorboard", *shlex.split(line)[1:]])
        assert list((folder / board.flags.logdir).rglob("events.*"))

    return {"run": plain, "parse": parse, "load": load, "make": make, "options": options, "syntax": syntax} | {
        "winner": winner,
        "board": board,
    }


@pytest.fixture
def do(run, folder, checks):
    """Does what a step asks for; raises AssertionError if it went wrong."""

    def act(page: Path, step: Step) -> None:
        if (page.name, step.kind) in ELSEWHERE or step.kind in SHOWN:
            return
        if step.kind == "python":
            name = re.match(r"# (\S+\.py)\n", step.text)
            (folder / (name[1] if name else "block.py")).write_text(step.text + "\n")
            assert name or run("python block.py").code == 0
            return
        assert step.kind == "sh", f"a block of {step.kind}: say in this test what to do with it"
        rule = next((rule for rule in RULES if re.match(rule.pattern, step.text)), None)
        ours = re.match(r"(\.venv/bin/)?(mantra|python) ", step.text)
        assert rule or ours, "a program that this test does not know: give it a rule"
        rule = rule or Rule("")
        checks[rule.how](step.text, rule)

    return act


def units_here(records, units, *_):
    """Trains networks in this process."""
    for unit in units:
        save_unit(unit, unit.train(records))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, do, run, folder, ray_here, monkeypatch):
    monkeypatch.setattr(stages, "run_units", units_here)  # tests/test_scripts.py has Ray Train do it
    if not (folder / "runs" / "cam_geometry").exists():  # the main job, which most pages speak of
        assert run(MAIN).code == 0
    for step in steps(page.read_text()):
        try:
            do(page, step)
        except AssertionError as error:
            pytest.fail(f"{page.name}, line {step.line}: {step.text}\n{error}")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("kubectl apply -f cluster/kuberay/raycluster.yaml", "does not know"),
        ("mantra train --no-such-option 1", "no-such-option"),
        ("mantra nosuch", "usage"),
        ("mantra results runs/nosuch", "nosuch"),
        (".venv/bin/python sweeps/ablation.py --nexus.tau 0", "nexus.tau"),
        (".venv/bin/python sweeps/nosuch.py", "nosuch"),
        ("make nosuch", "code"),
        ("tensorboard --logdir runs/nosuch", "rglob"),
        ("cluster/airgap/bundle --no-such-option", "usage"),
        ("tar -xf x.tar &&", "does not know"),
    ],
)
def test_what_is_wrong_is_found(line, told, do):
    """A page with such a line fails."""
    with pytest.raises((AssertionError, FileNotFoundError), match=told):
        do(Path("page.md"), Step(1, "sh", line))
    with pytest.raises(AssertionError, match="a block of"):
        do(Path("page.md"), Step(1, "fish", line))


def test_lines_of_a_page_are_found():
    page = "Text\n\n    mantra a \\\n        --b    # why\n\n1. item\n    goes on\n\n"
    blocks = "```sh\n$ c\n```\n```python\nx = 1\ny\n```\n"
    found = [(step.line, step.kind, step.text) for step in steps(page + blocks)]
    assert found == [(3, "sh", "mantra a --b"), (10, "sh", "c"), (13, "python", "x = 1\ny")]
