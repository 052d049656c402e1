#!/usr/bin/env python3
"""A floor for idle connections: answers the handshake, then holds each accepted socket and does nothing.

    rheostr-loadtest compare loadtest/compare.toml --run idle

What the kernel keeps for such a connection is the least it can keep for any server's.
"""

import base64
import hashlib
import resource
import socket
import sys

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
held = []
while True:
    connection, _ = listener.accept()
    connection.settimeout(5)
    head = b""
    try:
        while b"\r\n\r\n" not in head:
            received = connection.recv(4096)
            if not received:
                break
            head += received
    except OSError:
        continue
    fields = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n") if ": " in line)
    key = next((value for name, value in fields.items() if name.lower() == "sec-websocket-key"), None)
    if key is None:
        continue
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
    held.append(connection)
