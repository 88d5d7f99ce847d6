"""Serve verdicts on this machine: a page for a browser, and an interface for programs.

Run: python -m stages.tools.serve [--model FOLDER] [--port 8000]     then open http://127.0.0.1:8000

stages/lib/web/app.py says what the interface takes and gives.
"""

import argparse

import uvicorn

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.running import run_command
from stages.lib.verdict.load import load_judge
from stages.lib.web.app import Limits, make_app

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", default=str(paths.MODEL), help="a folder, or models:/NAME@champion")
    add("--no-crop", dest="crop", action="store_false", help="judge each picture whole")
    add("--host", default="127.0.0.1", help="another one than loopback lets other machines in")
    add("--port", type=int, default=8000)
    add("--megabytes", type=float, default=Limits.megabytes, help="of a picture's file")
    add("--max-megapixels", type=float, default=50.0, help="of a picture")
    add("--requests", type=int, default=Limits.requests, help="that may wait at once")
    add("--seconds", type=float, default=Limits.seconds, help="for one request")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    add("--threads", type=int, default=2, help="of the CPU")
    options = parser.parse_args()
    judge = load_judge(
        options.model, options.device, options.threads, options.crop, options.max_megapixels
    )
    limits = Limits(options.megabytes, options.requests, options.seconds)
    hosts = list(LOOPBACK) if options.host in LOOPBACK else ["*"]
    config = uvicorn.Config(
        make_app(judge, limits, hosts), options.host, options.port, log_level="warning"
    )
    try:
        socket = config.bind_socket()
    except SystemExit:  # uvicorn has told why
        raise UserError(f"--port {options.port}: taken, or not allowed; name another one") from None
    socket.listen(2048)  # who comes now waits until the server takes them
    port = socket.getsockname()[1]  # chosen by the system where --port is 0
    print(f"http://{options.host}:{port} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run([socket])


if __name__ == "__main__":
    run_command(main)
