"""An endpoint of this host answers to names of this host only."""

from __future__ import annotations

import http.client
import socket

import pytest

from gradwatch.errors import ConfigError
from gradwatch.exporters.prometheus import serve

OWN = socket.gethostname()


def status(server, host, path="/metrics"):
    """(status, body) of a request with this Host header; None sends none."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.putrequest("GET", path, skip_host=True)
        if host is not None:
            connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def server(reader):
    with serve(0) as server:
        yield server


@pytest.mark.parametrize("path", ["/metrics", "/", "/data.json"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.7",
        "[2001:db8::1]",
    ],
)
def test_a_loopback_endpoint_refuses_the_name_of_somebody_else_and_says_why(server, host, path, health):
    before = health.scrape_errors()["http"]
    code, body = status(server, host, path)
    assert code == 403
    assert "allowed_hosts" in body
    assert "gradwatch_" not in body.replace("gradwatch.serve", "")
    assert health.scrape_errors()["http"] == before + 1


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9464",
        "localhost.",
        "127.0.0.1:1",
        "127.5.5.5",
        "[::1]:9464",
        "run.localhost",
        OWN,
        None,
        "",
    ],
)
def test_a_loopback_endpoint_answers_to_the_names_of_this_host(server, host):
    assert status(server, host)[0] == 200


def test_a_name_that_is_allowed_is_answered_and_others_are_not(reader):
    with serve(0, allowed_hosts=["Trainer-1.example."]) as server:
        assert status(server, "trainer-1.example:9464")[0] == 200
        assert status(server, "localhost")[0] == 200
        assert status(server, "trainer-2.example")[0] == 403


def test_a_star_allows_every_name(reader):
    with serve(0, allowed_hosts=["*"]) as server:
        assert status(server, "evil.example")[0] == 200


def test_an_endpoint_of_every_network_answers_to_every_name_unless_names_are_given(reader):
    with serve(0, "0.0.0.0") as server:
        assert status(server, "trainer-1.example")[0] == 200
    with serve(0, "0.0.0.0", allowed_hosts=["trainer-1.example"]) as server:
        assert status(server, "trainer-1.example")[0] == 200
        assert status(server, "evil.example")[0] == 403


@pytest.mark.parametrize("hosts", ["trainer-1", ["http://trainer-1"], ["trainer-1:9464"], [""], [None], ["a b"]])
def test_names_that_are_none_are_refused(hosts):
    with pytest.raises(ConfigError, match="allowed_hosts must"):
        serve(0, allowed_hosts=hosts)
