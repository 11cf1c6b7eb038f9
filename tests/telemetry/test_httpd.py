"""The HTTP server keeps bad clients away from the training beside it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request

import pytest

from gradwatch.exporters import httpd
from gradwatch.exporters.httpd import Httpd


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@pytest.fixture
def server():
    server = Httpd(app, "127.0.0.1", 0)
    yield server
    server.stop()


def talk(server, sent: bytes, seconds: float = 5.0) -> bytes:
    """What the server answers to these bytes until it hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as client:
        try:
            client.sendall(sent)
            answer = b""
            while part := client.recv(65536):
                answer += part
        except ConnectionError:
            pass
        return answer


def healthy(server) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=5) as response:
        return response.read() == b"hello"


def test_it_answers(server):
    assert healthy(server)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b"431"),
        (b"\x16\x03\x01 TLS to a plain port\r\n\r\n", b"400"),
        (b"GARBAGE\r\n\r\n", b"400"),
    ],
    ids=["line", "header", "headers", "tls", "garbage"],
)
def test_a_request_that_is_too_large_or_none_is_refused_and_counted(server, health, request_bytes, status):
    before = health.scrape_errors()["http"]
    answer = talk(server, request_bytes)
    assert answer == b"" or status in answer  # nothing: the reset that ends the connection overtook the answer
    assert health.scrape_errors()["http"] > before
    assert healthy(server)


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(monkeypatch, health):
    monkeypatch.setattr(httpd, "REQUEST_SECONDS", 0.3)
    server = Httpd(app, "127.0.0.1", 0)
    before = health.scrape_errors()["http"]
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            began = time.monotonic()
            with contextlib.suppress(OSError):  # a reset or a broken pipe
                while time.monotonic() - began < 5:
                    client.sendall(b"x")
                    time.sleep(0.05)
            assert time.monotonic() - began < 3
        assert health.scrape_errors()["http"] > before
        assert healthy(server)
    finally:
        server.stop()


def test_silent_clients_in_all_places_delay_others_but_do_not_shut_them_out(monkeypatch):
    monkeypatch.setattr(httpd, "REQUEST_SECONDS", 0.5)
    server = Httpd(app, "127.0.0.1", 0)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(httpd.MOST_CONNECTIONS + 5)]
    try:
        assert healthy(server)
    finally:
        for client in silent:
            client.close()
        server.stop()


def test_there_are_never_more_threads_than_places(server):
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(httpd.MOST_CONNECTIONS + 20)]
    try:
        time.sleep(0.5)
        threads = [t for t in threading.enumerate() if "process_request_thread" in t.name]
        assert 0 < len(threads) <= httpd.MOST_CONNECTIONS
    finally:
        for client in silent:
            client.close()


def test_a_storm_of_requests_is_slowed_to_the_rate(monkeypatch):
    monkeypatch.setattr(httpd, "REQUESTS_PER_SECOND", 20.0)
    monkeypatch.setattr(httpd, "BURST", 20)
    server = Httpd(app, "127.0.0.1", 0)
    try:
        began = time.monotonic()
        for _ in range(30):
            healthy(server)
        # 20 at once, the other 10 at 20 a second
        assert time.monotonic() - began > 0.4
    finally:
        server.stop()


def test_a_hundred_clients_at_once_are_all_answered(server):
    answers = []
    clients = [threading.Thread(target=lambda: answers.append(healthy(server))) for _ in range(100)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert answers == [True] * 100


def test_it_says_nothing_to_the_terminal(server, capfd):
    talk(server, b"GARBAGE\r\n\r\n")
    healthy(server)
    assert capfd.readouterr() == ("", "")


def test_stopping_cuts_off_who_is_still_connected_and_is_quick():
    server = Httpd(app, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        healthy(server)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2
        assert client.recv(10) == b""
