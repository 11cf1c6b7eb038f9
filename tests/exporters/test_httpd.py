"""The HTTP server keeps bad clients away from the training beside it."""

from __future__ import annotations

import contextlib
import resource
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


#: What a client may have sent when it falls silent.
SILENCES = {
    "nothing": b"",
    "half a request line": b"GET /met",
    "a request line": b"GET /metrics HTTP/1.1\r\n",
    "half a header": b"GET /metrics HTTP/1.1\r\nHost: 127.0",
    "half a body": b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf",
}


@contextlib.contextmanager
def crowd(server, count: int, sent: bytes):
    """So many clients that send this and wait."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], max(limits[0], 8192)), limits[1]))
    clients = []
    try:
        for _ in range(count):
            clients.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            with contextlib.suppress(OSError):  # cut off already
                clients[-1].sendall(sent)
        yield clients
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("sent", SILENCES.values(), ids=SILENCES)
def test_beside_a_thousand_idle_clients_an_answer_takes_less_than_a_second(server, sent):
    with crowd(server, 1000, sent):
        for _ in range(3):
            began = time.monotonic()
            assert healthy(server)
            assert time.monotonic() - began < 1


def test_idle_clients_that_come_back_at_once_shut_nobody_out(server):
    ended = threading.Event()

    def come_back():
        while not ended.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
            ):
                client.sendall(b"GET /met")
                client.recv(1)  # until it is cut off

    clients = [threading.Thread(target=come_back) for _ in range(httpd.MOST_IDLE + 33)]
    for client in clients:
        client.start()
    try:
        time.sleep(0.5)
        for _ in range(5):
            began = time.monotonic()
            assert healthy(server)
            assert time.monotonic() - began < 4  # 161 threads of this very process are busy coming back
            time.sleep(0.1)
    finally:
        ended.set()
        server.stop()
        for client in clients:
            client.join()


def test_a_thousand_idle_clients_cost_neither_threads_nor_places(server):
    before = threading.active_count()
    with crowd(server, 1000, b"GET /met"):
        assert healthy(server)
        assert threading.active_count() <= before + httpd.MOST_THREADS
        assert len(server._idle) + len(server._busy) <= httpd.MOST_IDLE + httpd.MOST_CONNECTIONS


def test_few_idle_clients_are_left_alone_until_their_time_is_up(server):
    with crowd(server, 20, b"GET /met") as clients:
        assert healthy(server)
        clients[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            clients[0].recv(1)
        for client in clients:
            client.sendall(b"rics HTTP/1.0\r\n\r\n")
        for client in clients:
            client.settimeout(5)
            assert b"200 OK" in client.recv(100)


def test_clients_that_do_not_read_their_answers_make_room_for_others(monkeypatch):
    monkeypatch.setattr(httpd, "_STUCK_SECONDS", 0.2)

    def large(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x" * (12_000_000 if environ["PATH_INFO"] == "/large" else 5)]

    server = Httpd(large, "127.0.0.1", 0)
    try:
        with crowd(server, httpd.MOST_CONNECTIONS + 3, b"GET /large HTTP/1.0\r\n\r\n"):
            began = time.monotonic()
            assert talk(server, b"GET / HTTP/1.0\r\n\r\n", 30).endswith(b"xxxxx")
            assert time.monotonic() - began < 30  # not the 60 seconds that an answer may take
    finally:
        server.stop()


def test_an_app_that_hangs_holds_up_only_its_own_clients():
    release = threading.Event()

    def slow(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            release.wait(10)
        return app(environ, start_response)

    server = Httpd(slow, "127.0.0.1", 0)
    try:
        with crowd(server, httpd.MOST_THREADS - 1, b"GET /slow HTTP/1.0\r\n\r\n") as clients:
            time.sleep(0.2)
            assert healthy(server)
            release.set()
            assert all(b"200 OK" in client.recv(1000) for client in clients)
    finally:
        server.stop()


def test_a_request_that_comes_byte_by_byte_is_answered_with_its_body():
    def echo(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]

    server = Httpd(echo, "127.0.0.1", 0)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody":
                client.sendall(bytes([byte]))
                time.sleep(0.002)
            answer = b""
            while part := client.recv(1000):
                answer += part
        assert answer.endswith(b"\r\n\r\nbody")
    finally:
        server.stop()


def test_without_clients_it_sleeps(server):
    healthy(server)
    time.sleep(0.3)
    looks = []
    select = server._selector.select
    server._selector.select = lambda timeout: looks.append(timeout) or select(timeout)
    healthy(server)
    time.sleep(0.6)
    assert looks[-1] is None
    assert len(looks) < 20


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
