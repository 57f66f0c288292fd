"""Jupyter kernels for the pages, forked from a process that has imported the package: an import takes some seconds.

As a program, this module is that process (``serve``), or what Jupyter starts, which asks it for a kernel (``ask``).
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def start(folder: str) -> None:
    """Write the kernel into a folder, for ``JUPYTER_PATH``, and start the process, which ends with this one."""
    program = [sys.executable, __file__]
    kernel = Path(folder, "kernels", "python3")
    kernel.mkdir(parents=True)
    argv = [*program, "ask", f"{folder}/socket", "{connection_file}"]
    spec = {"display_name": "Python 3", "language": "python", "argv": argv}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")
        server.listen()
        serve = [*program, "serve", str(server.fileno()), str(os.getpid())]
        subprocess.Popen(serve, stdin=subprocess.DEVNULL, pass_fds=[server.fileno()])


def serve(file: str, parent: str) -> None:
    """Fork a kernel for each request, as long as the parent lives."""
    import ipykernel.kernelapp
    import lightning_fabric  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch

    import pyro_ssvae  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports more of PyTorch
    server = socket.socket(fileno=int(file))
    server.settimeout(1.0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == int(parent):
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            os.setsid()  # no signal to the group of the kernel reaches the build
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.settimeout(None)
            wanted = json.loads(connection.makefile().readline())
            os.chdir(wanted["folder"])
            os.environ |= wanted["environ"]
            argv = [*wanted["argv"], f"--IPKernelApp.parent_handle={os.getppid()}"]  # with which it ends
            ipykernel.kernelapp.launch_new_instance(argv=argv)
            os._exit(0)
        connection.close()


def ask(address: str, *argv: str) -> None:
    """Ask for a kernel, and wait for its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"folder": os.getcwd(), "environ": dict(os.environ), "argv": ["-f", *argv]}
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.recv(1)


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
