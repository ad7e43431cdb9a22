"""The socket that the service listens on."""

import socket

import uvicorn

from attnserve.service.server import open_listener


def test_connections_send_at_once():
    with open_listener(uvicorn.Config(None, host="127.0.0.1", port=0, log_config=None)) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
