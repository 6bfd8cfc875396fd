"""A sweep's folder in TensorBoard itself: what its server tells, and what Chromium makes of it."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import aiohttp
import pytest

from mantra_ray.config import LAPTOP, ExperimentConfig, NexusConfig
from mantra_ray.fields import replace
from mantra_ray.sweep.hparams import Columns
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.tensorboard import TrialBoard, begin
from mantra_ray.sweep.trial import run_trial
from mantra_ray.sweep.worker import final_numbers

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE = 90.0  # seconds; it takes a few
BASE = ExperimentConfig(nexus=NexusConfig(**LAPTOP | {"d_model": 16}, heads=2, top_programs=3, epochs=1, slots=4))
ARMS = [{"nexus.buckets": 8, "nexus.slots": 4, "nexus.regret_gamma": gamma} for gamma in (float("-inf"), 0.5)]
ARMS.append({"nexus.buckets": 512, "nexus.slots": 32, "nexus.regret_gamma": 0.5})
# All text of a page, that of its shadow trees too, which --dump-dom leaves out.
TEXT = """(() => { const found = []; const walk = node => {
  if (node.nodeType === Node.TEXT_NODE) found.push(node.data);
  if (node.shadowRoot) walk(node.shadowRoot);
  if (!['STYLE', 'SCRIPT'].includes(node.tagName)) node.childNodes.forEach(walk);
}; walk(document.body); return found.join(' '); })()"""


@pytest.fixture(scope="module")
def trials(planted):
    """Three trials of a memory, and the baselines."""
    specs = [TrialSpec("nexus", replace(BASE, **arm), "d", "c") for arm in ARMS]
    return [*specs, TrialSpec("baselines", BASE, "d", "c")]


@pytest.fixture(scope="module")
def address(trials, planted, tmp_path_factory):
    """Where TensorBoard shows these trials."""
    folder, columns = tmp_path_factory.mktemp("sweep") / "tensorboard", Columns.of(ARMS, BASE)
    begin(folder, columns, {spec.id: spec for spec in trials})
    for spec in trials:
        board = TrialBoard(folder / columns.run(spec))
        outcome = run_trial(spec, planted(), folder, board.epoch)
        board.finish(spec, final_numbers(outcome), outcome.held)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)
            yield next(match.group() for match in found if match)
        finally:
            server.terminate()


def ask(address, path, body=None, **about):
    """JSON that TensorBoard answers with."""
    url = f"{address}data/{path}" + ("?" + urlencode(about) if about else "")
    asked = Request(url, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(asked, timeout=PATIENCE) as answer:
        return json.load(answer)


def until(happens):
    """What `happens()` returns, asked again until it is true; TensorBoard reads files as it goes."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happens()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found
    return found


def test_the_server_tells_of_trials_metrics_histograms_images_and_text(address, trials):
    runs = {Columns.of(ARMS, BASE).run(spec): spec for spec in trials}
    until(lambda: set(ask(address, "runs")) == {*runs, "columns"})
    experiment = ask(address, "plugin/hparams/experiment", {"experimentName": ""})
    assert [info.get("displayName") for info in experiment["hparamInfos"]] == ["split", "geometry", "gamma", ""]
    shown = {"colParams": [], "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 10}
    groups = ask(address, "plugin/hparams/session_groups", shown)["sessionGroups"]
    assert {group["name"] for group in groups} == {name for name, spec in runs.items() if spec.kind == "nexus"}
    for group in groups:
        spec, told = runs[group["name"]], {v["name"]["tag"]: v["value"] for v in group["metricValues"]}
        gamma = spec.config.nexus.regret_gamma
        assert group["hparams"]["nexus.regret_gamma"] == (gamma if gamma > 0 else "-inf")
        assert group["hparams"]["nexus.geometry"] in ("8x4", "512x32")
        assert {"final/test_gain", "final/validation_gain", "final/write_density"} <= told.keys()
    own = {name for name, spec in runs.items() if spec.kind == "nexus"}
    histograms, images, texts = (ask(address, f"plugin/{name}/tags") for name in ("histograms", "images", "text"))
    kinds = {"priority", "similarity_training", "similarity_validation"}
    for run in own:
        assert set(histograms[run]) == {f"memory/regulator_{kind}" for kind in kinds}
        assert set(images[run]) == {"memory/regulator_slots"}
        (image,) = ask(address, "plugin/images/images", run=run, tag="memory/regulator_slots", sample=0)
        with urlopen(f"{address}data/plugin/images/individualImage?{image['query']}") as answer:
            assert answer.read().startswith(b"\x89PNG")
        (text,) = ask(address, "plugin/text/text", run=run, tag="settings/text_summary")
        assert runs[run].id in text["text"] and "<table>" in text["text"]
    assert set(texts) == set(runs) and not set(runs) - own & (histograms.keys() | images.keys())


async def page_text(url, wanted, profile):
    """Text of a page in headless Chromium, over the DevTools protocol, as soon as all that is wanted is there."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    browser = await asyncio.create_subprocess_exec(
        *command,
        f"--user-data-dir={profile}",
        url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            while not (port := profile / "DevToolsActivePort").exists() or not port.read_text():
                await asyncio.sleep(0.1)
            tools = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
            while True:
                async with session.get(tools) as answer:
                    pages = [page for page in await answer.json() if page["type"] == "page"]
                if pages:
                    break
                await asyncio.sleep(0.1)
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                for number in range(10**6):
                    question = {"expression": TEXT, "returnByValue": True}
                    await socket.send_json({"id": number, "method": "Runtime.evaluate", "params": question})
                    while (message := await socket.receive_json()).get("id") != number:
                        pass
                    text = message["result"]["result"].get("value", "")
                    if all(word in text for word in wanted):
                        return text
                    await asyncio.sleep(0.3)
    finally:
        browser.terminate()
        await browser.wait()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_hparams_tab_shows_trials_and_metrics_in_a_browser(address, trials, tmp_path):
    until(lambda: len(ask(address, "runs")) == len(trials) + 1)
    columns = Columns.of(ARMS, BASE)
    rows = [columns.run(spec) for spec in trials if spec.kind == "nexus"]
    shown = [*rows, "split", "geometry", "gamma", "8x4", "512x32", "-inf", "validation gain", "test gain"]
    text = asyncio.run(page_text(f"{address}#hparams", shown, tmp_path))
    assert "grn.accumulate" not in text and columns.run(trials[-1]) not in text
