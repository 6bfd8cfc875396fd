"""Where a Ray cluster listens is known before Ray is asked, which waits for minutes."""

import contextlib
import socket

import pytest
import ray

from mantra_ray.errors import InputError
from mantra_ray.sweep.cluster import connected, here_alone


@contextlib.contextmanager
def listening(host):
    """A port at which something listens."""
    with socket.create_server((host, 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_what_listens_on_loopback_is_here_alone(name):
    with listening("127.0.0.1") as port:
        elsewhere = ray.util.get_node_ip_address() != "127.0.0.1"
        assert here_alone(f"{name}:{port}") == elsewhere


def test_what_listens_everywhere_is_not_here_alone():
    with listening("0.0.0.0") as port:
        assert not here_alone(f"127.0.0.1:{port}")


def test_a_ray_to_start_is_here_alone_and_what_ray_finds_itself_is_not():
    assert here_alone("") and not here_alone("auto") and not here_alone("ray://head:10001")


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_where_nothing_listens_is_an_input_error_at_once(host, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with listening("127.0.0.1") as port:
        pass
    answer = f"--address: no Ray cluster answers.*{host}:{port}"
    with pytest.raises(InputError, match=answer), connected(f"{host}:{port}"):
        pass


def test_a_port_that_cannot_be_is_an_input_error():
    with pytest.raises(InputError, match="no Ray cluster answers"):
        here_alone("127.0.0.1:99999")
