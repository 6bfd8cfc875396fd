"""The whole report of a made sweep: what is in it, that it stands alone, and how it is written."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser

import pytest

from mantra_ray.report.findings import read_findings
from mantra_ray.report.report import make_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADING = {"src", "srcset", "poster", "data", "action"}  # attributes by which a page loads something
NAMES = [
    *("gain_gamma", "geometry", "write_density", "occupancy", "pareto", "importance", "rarity", "effect_size"),
    *("baselines", "traits", "roc"),
]


class Checker(HTMLParser):
    """Tags that are open, what each image and figure says, ids, links, and whatever the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.loads, self.alts, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.loads += [value for name, value in attributes if name in LOADING or (name == "href" and tag != "a")]
        self.alts += [given["alt"]] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def section(report, title):
    """Text of a section, without its tags and images."""
    (html,) = re.findall(
        rf"<section id=\"[^\"]*\">\n<h2>{re.escape(title)}</h2>(.*?)</section>", report.html, re.DOTALL
    )
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def test_the_page_is_well_formed_and_loads_nothing(report):
    found = Checker(report.html)
    assert all(value.startswith("data:image/svg+xml;base64,") for value in found.loads)
    assert len(found.loads) == len(report.pictures) and "script" not in found.tags and "link" not in found.tags
    assert "http" not in re.sub(r"base64,[^\"]*", "", report.html) and "url(" not in report.html
    assert "@import" not in report.html and "@media print" in report.html
    assert len(found.ids) == len(set(found.ids))
    anchors = {link[1:] for link in found.links if link.startswith("#")}
    assert anchors <= set(found.ids) and len(anchors) == found.tags.count("section") == 13


def test_every_figure_says_what_it_shows(report):
    assert [picture.name for picture in report.pictures] == NAMES
    for picture in report.pictures:
        assert "n = " in picture.caption or "n, test records" in picture.caption, picture.name
        assert re.search(r"interval|the line from|The line spans|dots are seeds", picture.caption), picture.name
        assert picture.alt and ElementTree.fromstring(picture.svg).tag.endswith("svg")
        assert b"<text" not in picture.svg  # letters are paths: no font is needed
        assert picture.png.startswith(b"\x89PNG")
    assert Checker(report.html).alts == [picture.alt for picture in report.pictures]


def test_a_report_is_the_same_every_time(write, tmp_path):
    write(tmp_path, arms=[{}], splits=("seen",))
    one, other = (make_report(read_findings(str(tmp_path))) for _ in range(2))
    assert one.html == other.html and one.pictures[0].png == other.pictures[0].png


def test_sections_without_data_say_so(write, tmp_path):
    write(tmp_path, arms=[{}], fails=lambda trial: trial.kind == "nexus")
    report = make_report(read_findings(str(tmp_path)))
    Checker(report.html)
    assert "No trial of the memory finished." in section(report, "Configurations")
    assert "No trial of the memory finished." in section(report, "What the memory holds")
    assert "Neither gamma nor alpha varies" in section(report, "Gain against gamma and alpha")
    assert "It takes 10 configurations" in section(report, "Knob importance")
    assert [picture.name for picture in report.pictures] == ["baselines", "traits", "roc"]


def test_nothing_but_baselines_fails_and_the_memory_is_still_judged(write, tmp_path):
    write(tmp_path, arms=[{}], splits=("seen",), fails=lambda trial: trial.kind == "baselines")
    report = make_report(read_findings(str(tmp_path)))
    assert "On seen the memory helps" in section(report, "Conclusions")
    assert "memory_on" in section(report, "Baselines") and "ridge" not in section(report, "Baselines")


def test_an_unfinished_sweep_says_so(write, tmp_path):
    arms = [{"nexus.tau": 0.1}, {"nexus.tau": 0.2}]
    write(tmp_path, arms=arms, splits=("seen",), skips=lambda trial: trial.config.nexus.tau == 0.2)
    report = make_report(read_findings(str(tmp_path)))
    assert "The sweep is not finished: 2 trials have not ended." in report.html


def test_secrets_are_not_told(write, tmp_path):
    origin = {"command": "mantra sweep x.py --token hf_abcdefghijklmnop --data s3://me:pass@host/x"}
    write(tmp_path, arms=[{}], splits=("seen",), fails=lambda trial: trial.config.seed == 1, origin=origin)
    report = make_report(read_findings(str(tmp_path)))
    for secret in ("hf_abcdefghijklmnop", "me:pass"):
        assert secret not in report.html
    assert "mantra sweep x.py --token ***" in section(report, "Provenance")


def test_a_second_report_takes_away_what_the_first_showed_and_nothing_else(report, tmp_path):
    report.write(tmp_path)
    own = [tmp_path / "figures" / name for name in ("mine.png", "geometry.txt", "notes")]
    for path in own:
        path.write_text("mine")
    outside = tmp_path / "outside.png"
    outside.write_text("mine")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    made = '<a href="figures/geometry.svg">SVG</a>'
    assert made in page
    (tmp_path / "report.html").write_text(page + made.replace("geometry.svg", "../outside.png"), encoding="utf-8")
    fewer = dataclasses.replace(report, pictures=[p for p in report.pictures if p.name != "geometry"])
    for _ in range(2):
        fewer.write(tmp_path)
        left = {f"{name}.{kind}" for name in NAMES if name != "geometry" for kind in ("png", "svg")}
        assert {path.name for path in (tmp_path / "figures").iterdir()} == left | {path.name for path in own}
        assert all(path.read_text() == "mine" for path in (*own, outside))
    (tmp_path / "report.html").write_bytes(b"\xff\xfe damaged")
    report.write(tmp_path)
    assert (tmp_path / "figures" / "geometry.svg").is_file()


def test_files_are_whole_or_not_there(report, tmp_path, monkeypatch):
    page = report.write(tmp_path)
    assert page == tmp_path / "report.html" and page.read_text(encoding="utf-8") == report.html
    names = {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "figures"}
    for link in Checker(report.html).links:
        assert link.startswith("#") or (tmp_path / link).is_file()

    def broken(self, *args, **options):
        raise OSError("no space")

    monkeypatch.setattr("pathlib.Path.write_text", broken)
    with pytest.raises(OSError, match="no space"):
        report.write(tmp_path / "other")
    assert not (tmp_path / "other" / "report.html").exists() and not list((tmp_path / "other").glob(".*"))
