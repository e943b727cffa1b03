"""What `palimpsest` is on the pages' PATH: hands arguments, folder, environment and streams to the fork server.

Signals are passed on, and it ends as its child ends, so that a shell sees no difference.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["PAGES_FORK_SERVER"])
    request = {"arguments": sys.argv[1:], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(server, [data], [0, 1, 2])
    server.sendall(data[sent:])
    with server.makefile("r") as answers:
        pid = json.loads(answers.readline())["pid"]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = json.loads(answers.readline())["code"]
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
