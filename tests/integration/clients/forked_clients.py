"""A client's command from a process that has imported the client, each command a process of its own.

The tests that come with the clients type some two hundred commands, and four fifths of the time of each goes
to imports.  ``forked_clients.py SOCKET SCRIPT`` imports the client whose script has this name, writes a
stand-in for the script, and forks for each command that the stand-in is called with: same words, environment,
directory and standard files, and the client's own ``main``.  Run by the interpreter that has the clients.
"""

import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

#: What a script imports: first the module of its entry point.
MODULES = {
    "openstack": ("openstackclient.shell", "openstackclient.volume.client", "openstack"),
    "cinder": ("cinderclient.shell", "cinderclient.v3.client"),
}
#: Imports next to nothing, or it would be as slow.
STAND_IN = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(link, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    link.sendall(asked)
    sys.exit(int(link.recv(10) or b"70"))
"""


def handle(link: socket.socket, main) -> int:
    """Run one command, in a process of its own; returns its exit status."""
    length, files, _flags, _address = socket.recv_fds(link, 8, 3)
    text = link.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    words, directory, environment = json.loads(text)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 0 if status is None else 1


def serve(address: str, script: Path) -> None:
    """Serve until the process is ended; says so when it is ready."""
    entry, *_others = [importlib.import_module(name) for name in MODULES[script.name]]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(8)
        script.write_text(STAND_IN.format(python=sys.executable, address=address))
        script.chmod(0o755)
        print("ready", flush=True)
        while True:
            link, _ = listener.accept()
            if os.fork() == 0:
                # Commands wait for processes of their own.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                status = 70
                try:
                    status = handle(link, entry.main)
                finally:
                    link.sendall(str(status).encode())
                    os._exit(0)
            link.close()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
