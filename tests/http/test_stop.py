"""A service that was told to stop: who has a connection is answered once more."""

import http.client
import json
import signal
import socket
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.http

# Longer than any machine stands still.
PATIENT = "import attnserve.service.server as server; server.LINGER_S = 600"


def is_listening(place):
    try:
        socket.create_connection((place.hostname, place.port)).close()
    except ConnectionError:
        return False
    return True


def test_what_comes_over_a_connection_that_is_kept_is_answered(bundles, start_server):
    with start_server(bundles, prelude=PATIENT) as served:
        place = urlsplit(served.url)
        # No connection but this one, or its stop waits for the others.
        served.client.close()
        kept = http.client.HTTPConnection(place.hostname, place.port, timeout=60)

        def ask():
            kept.request("POST", "/v1/models/tiny/predict", json.dumps({"sequences": [[1]]}))
            response = kept.getresponse()
            return response.status, response.getheader("Connection"), response.read()

        before = ask()
        served.process.send_signal(signal.SIGTERM)
        while is_listening(place):
            pass
        # Nobody listens any more; the connection is there, and idle.
        after = ask()
        assert before[:2] == (200, None)
        assert after[:2] == (200, "close")
        assert before[2] == after[2]
        # Its last connection is gone, so it does not linger.
        assert served.process.wait(timeout=60) == 0
    assert "Traceback" not in served.log.read_text()


def test_a_connection_that_says_nothing_is_closed(bundles, start_server):
    with start_server(bundles) as served:
        assert served.client.get("/healthz").status_code == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=30) == 0
