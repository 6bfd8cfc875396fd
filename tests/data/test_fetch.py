"""Fetching against a local server that has ranges or not, breaks off, errs, or serves the wrong content."""

import dataclasses
import hashlib
import http.server
import threading

import numpy as np
import pytest

from mantra_ray.data.fetch import fetch, hash_file, part_of
from mantra_ray.data.sources import CataloguedFile
from mantra_ray.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`, a piece of `server.limit` bytes at most a request; keeps a log of the requests."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        status = server.states.pop(0) if server.states else 200
        if status != 200:
            self.send_response(status)
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            shown = start + server.shift
            self.send_header("Content-Range", f"bytes {shown}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + server.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.content, instance.limit, instance.ranges = CONTENT, len(CONTENT), True
    instance.requests, instance.states, instance.shift = [], [], 0
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield instance
    instance.shutdown()
    thread.join()
    instance.server_close()


def entry(server, **changes):
    file = CataloguedFile(
        name="data.bin",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        source="a page",
        licence="CC0",
        citation="someone",
        url=f"http://127.0.0.1:{server.server_port}/data.bin",
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    return dataclasses.replace(file, **changes)


def quick(server, folder, report=lambda done: None, attempts=3, **changes):
    return fetch(entry(server, **changes), folder, report, attempts, wait=0.001)


def test_bytes_do_not_go_where_a_link_points(server, tmp_path):
    (tmp_path / "kept").write_bytes(CONTENT[:1000])
    part_of(tmp_path / "data.bin").symlink_to(tmp_path / "kept")
    assert quick(server, tmp_path) and (tmp_path / "data.bin").read_bytes() == CONTENT
    assert (tmp_path / "kept").read_bytes() == CONTENT[:1000] and not (tmp_path / "data.bin").is_symlink()


def test_a_file_is_fetched_once_and_progress_reported(server, tmp_path):
    folder, seen = tmp_path / "new" / "folder", []
    assert quick(server, folder, seen.append) is True
    assert (folder / "data.bin").read_bytes() == CONTENT and seen[-1] == len(CONTENT) and seen == sorted(seen)
    assert [path.name for path in folder.iterdir()] == ["data.bin"]
    assert quick(server, folder) is False and len(server.requests) == 1


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
    server.limit = 70_000
    assert quick(server, tmp_path, attempts=1)  # attempts count only what brings nothing
    assert server.requests == [None, *(f"bytes={n}-" for n in (70_000, 140_000, 210_000, 280_000))]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_later_call_resumes_an_earlier_one(server, tmp_path):
    part_of(tmp_path / "data.bin").write_bytes(CONTENT[:123_456])
    assert quick(server, tmp_path)
    assert server.requests == ["bytes=123456-"] and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_complete_part_needs_no_request(server, tmp_path):
    part_of(tmp_path / "data.bin").write_bytes(CONTENT)
    assert quick(server, tmp_path) and server.requests == []


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    part_of(tmp_path / "data.bin").write_bytes(CONTENT[:1000])
    assert quick(server, tmp_path) and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server, tmp_path):
    server.ranges, server.limit = False, 70_000
    with pytest.raises(InputError, match="the connection ended early"):
        quick(server, tmp_path)
    assert len(server.requests) == 4 and not (tmp_path / "data.bin").exists()  # one brings bytes, three nothing new


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"?", CONTENT + b"more"])
def test_wrong_content_is_refused_and_not_kept(server, tmp_path, content):
    server.content, server.limit = content, len(content)
    with pytest.raises(
        InputError, match=r"data.bin: \w+: is not the catalogued file; get it from .* sha256 "
    ) as caught:
        quick(server, tmp_path)
    assert caught.value.field == ("sha256" if len(content) == len(CONTENT) else "size")
    assert list(tmp_path.iterdir()) == []


def test_wrong_content_is_not_kept_after_resuming_either(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    part_of(tmp_path / "data.bin").write_bytes(CONTENT[:1000])
    with pytest.raises(InputError, match="sha256: is not the catalogued file"):
        quick(server, tmp_path)
    assert server.requests == ["bytes=1000-", None] and list(tmp_path.iterdir()) == []


def test_each_hash_is_verified(server, tmp_path):
    for name in ("sha256", "md5"):
        with pytest.raises(InputError, match=f"{name}: is not the catalogued file"):
            quick(server, tmp_path, **{name: "0" * 64})
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_replaced(server, tmp_path):
    part_of(tmp_path / "data.bin").write_bytes(b"x" * 1000)
    assert quick(server, tmp_path) and server.requests == ["bytes=1000-", None]
    part_of(tmp_path / "data.bin").write_bytes(b"x" * 400_000)  # longer than the file
    (tmp_path / "data.bin").unlink()
    assert quick(server, tmp_path) and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_server_with_a_shorter_file_is_given_up(server, tmp_path):
    server.content = CONTENT[:1000]
    with pytest.raises(InputError, match="cannot be fetched"):
        quick(server, tmp_path)
    assert len(server.requests) < 8 and not (tmp_path / "data.bin").exists()


def test_another_range_than_asked_for_is_not_taken(server, tmp_path):
    part_of(tmp_path / "data.bin").write_bytes(CONTENT[:1000])
    server.shift = 5
    assert quick(server, tmp_path)  # starts over
    assert server.requests == ["bytes=1000-", None] and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_missing_page_fails_at_once_and_a_busy_server_is_asked_again(server, tmp_path):
    server.states = [404]
    with pytest.raises(InputError, match=r"the server answers 404 Not Found; get it from http.* and put it in"):
        quick(server, tmp_path)
    assert len(server.requests) == 1
    server.states = [503, 202]
    assert quick(server, tmp_path) and len(server.requests) == 4


def test_without_a_network_the_message_says_what_to_do(server, tmp_path):
    url = "http://127.0.0.1:9/data.bin"  # the discard port, where nothing listens
    part_of(tmp_path / "data.bin").write_bytes(CONTENT[:10])
    with pytest.raises(InputError) as caught:
        quick(server, tmp_path, url=url)
    message = str(caught.value)
    for part in ("Connection refused", url, "a page", "300,000 bytes", entry(server).sha256, "CC0", str(tmp_path)):
        assert part in message
    assert "10 bytes are kept in data.bin.part" in message
    assert part_of(tmp_path / "data.bin").read_bytes() == CONTENT[:10]


def test_a_file_that_must_be_made_is_named(server, tmp_path):
    with pytest.raises(InputError, match=r"no address has it as it is; get it from a page .CC0; 300,000 bytes"):
        quick(server, tmp_path, url="")


def test_an_existing_file_is_never_replaced(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="size: is not the catalogued file"):
        quick(server, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"mine" and server.requests == []


def test_a_folder_that_cannot_be_written_is_said(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        quick(server, tmp_path / "file")


def test_hash_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        hash_file(tmp_path / "none")
