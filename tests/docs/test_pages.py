"""The pages fit the code and each other: settings, options, files and links that they name are there."""

import contextlib
import dataclasses
import io
import re
import sys
from pathlib import Path

import pytest
from ray.scripts.scripts import cli as ray

from mantra_ray import cli
from mantra_ray.config import ExperimentConfig, NexusConfig
from mantra_ray.fields import flatten

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
# Commands of commands, which a name alone does not reach.
DEEPER = {"data": ("list", "fetch", "describe", "import"), "programs": ("fit", "choose-k"), "tokens": ("build",)}


def spans(text: str) -> list[str]:
    """What stands between single backticks, outside of blocks, on one line."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@pytest.fixture(scope="module")
def known():
    """Every option that `mantra COMMAND --help` tells of, by command."""
    found, told = {}, io.StringIO()
    commands = [[name, *more] for name in cli.COMMANDS for more in ([word] for word in DEEPER.get(name, ()))]
    commands += [[name] for name in cli.COMMANDS if name not in DEEPER] + [["bench", name] for name in cli.BENCHES]
    for words in [*commands, ["sweep", str(ROOT / "sweeps" / "cam_geometry.py")]]:
        with contextlib.redirect_stdout(told), pytest.raises(SystemExit) as end:
            cli.main([*words, "--help"])
        assert not end.value.code, words
        found[" ".join(words[: 1 if words[0] == "sweep" else 2])] = set(
            re.findall(r"--[a-z][\w.-]*\w", told.getvalue())
        )
        told.seek(0), told.truncate()
    return found


@pytest.fixture(scope="module")
def scripts():
    """The text of everything in `cluster/`, and of the Makefile."""
    files = [ROOT / "Makefile", *(path for path in (ROOT / "cluster").rglob("*") if path.is_file())]
    return "\n".join(path.read_text() for path in files)


FOREIGN = {  # options of programs that are not ours
    "--help": "any",
    "--logdir": "tensorboard",
    "--follow": "ray job logs",
    "--generate": "ray get-auth-token",
    "--release": "cluster/with_nodes.py",
}


@pytest.mark.parametrize("name", TEXTS)
def test_options_that_a_page_names_exist(name, known, scripts):
    every = set().union(*known.values())
    for span in spans(TEXTS[name]):
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", span):
            asked = option.replace("_", "-")
            assert asked in every or option in FOREIGN or option in scripts, f"{option} in `{span}`"


@pytest.mark.parametrize("name", TEXTS)
def test_commands_that_a_page_names_exist(name, known, scripts):
    for span in spans(TEXTS[name]):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            assert re.search(rf"^{re.escape(words[1])}:", scripts, re.MULTILINE), span
        if words[0] in ("python", "bash") and len(words) > 1 and words[1].endswith((".py", ".sh")):
            assert (ROOT / words[1]).exists(), span
        if words[0] == "mantra" and len(words) > 1 and words[1] not in ("COMMAND", "..."):
            command = next((c for c in known if words[1:][: len(c.split())] == c.split()), None)
            alone = words[1] in (*cli.COMMANDS, "bench", "sweep") and len(words) == 2
            assert command or alone, span
            wrong = {word for word in words if word.startswith("--")} - known.get(command, set()) - set(FOREIGN)
            assert not wrong or alone, f"{wrong} in `{span}`"


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_a_page_names_exist(name):
    folders = "mantra_ray|sweeps|cluster|analysis|tests|docs|.ci"
    for path in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./-]+\w", " ".join(spans(TEXTS[name]))):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", TEXTS)
def test_commands_of_ray_that_a_page_names_exist(name):
    for program, *words in map(str.split, spans(TEXTS[name])):
        if program != "ray" or not words:
            continue
        command = ray.commands[words.pop(0)]
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, words


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[name]):
        assert "://" in target or (here / target).exists(), target


@pytest.mark.parametrize("name", TEXTS)
def test_settings_that_a_page_names_exist(name):
    settings, sections = set(flatten(ExperimentConfig())), {"nexus", "grn", "programs", "manifold", "evaluation"}
    for setting in re.findall(r"(?<![\w./-])([a-z]+\.[a-z]\w*)(?![\w./(-])", " ".join(spans(TEXTS[name]))):
        section, _, rest = setting.partition(".")
        if section in sections and rest not in ("py", "md"):
            assert setting in settings, setting


def test_every_setting_of_the_memory_is_explained():
    assert {f"nexus.{field.name}" for field in dataclasses.fields(NexusConfig)} <= set(spans(TEXTS["docs/memory.md"]))


def test_the_page_of_settings_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import configuration

    try:
        assert configuration.page() == TEXTS["docs/configuration.md"], "stale: run python docs/configuration.py"
    finally:
        sys.modules.pop("configuration")


def test_every_page_is_in_the_table_of_contents():
    assert {page.name for page in PAGES} - {"README.md"} <= set(re.findall(r"\((\w+\.md)\)", TEXTS["docs/README.md"]))
