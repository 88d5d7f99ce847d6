"""Serve verdicts on this machine: a page for a browser, and an interface for programs.

Run: python -m stages.tools.serve [--model FOLDER] [--port 8000]     then open http://127.0.0.1:8000

stages/lib/verdict/server.py describes the interface.
"""

import sys

import uvicorn

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.evaluation.verdict_rules import DOUBTS
from stages.lib.running import run_command
from stages.lib.verdict.load import load_examiner
from stages.lib.verdict.server import make_app
from stages.lib.verdict.server_connections import server_config
from stages.lib.verdict.server_guard import Limits
from stages.tools.command_line import (
    add_device_and_threads,
    count,
    parser_of,
    port,
    positive,
)

OWN_NAMES = ["127.0.0.1", "::1", "localhost"]


def main() -> None:
    """Serve until Ctrl-C."""
    parser = parser_of(__doc__, "stages.tools.serve")
    add = parser.add_argument
    add("--model", default=str(paths.MODEL), help="a folder, or models:/NAME@champion")
    add("--no-crop", dest="crop", action="store_false", help="examine each image whole")
    add("--host", default="127.0.0.1", help="an address of this machine that lets others in")
    add("--name", action="append", default=[], help="another name under which it may be called")
    add("--port", type=port, default=8000)
    add("--megabytes", type=positive, default=Limits.megabytes, help="of an image's file")
    add("--video-megabytes", type=positive, default=Limits.video_megabytes, help="of a video")
    add("--max-megapixels", type=positive, default=50.0, help="of an image or a frame")
    add("--frames", type=count, default=Limits.frames, help="of a video that are judged")
    add("--requests", type=count, default=Limits.requests, help="that may wait at once")
    add("--seconds", type=positive, default=Limits.seconds, help="for one request")
    add_device_and_threads(parser)
    options = parser.parse_args()
    address = options.host.strip("[]")  # one of IPv6 may have brackets, as in a URL
    examiner = load_examiner(
        options.model, options.device, options.threads, options.crop, options.max_megapixels
    )
    limits = Limits(
        options.megabytes,
        options.video_megabytes,
        options.requests,
        options.seconds,
        frames=options.frames,
    )
    app = make_app(examiner, limits, [*OWN_NAMES, address, *options.name])
    config = server_config(app, host=address, port=options.port, log_level="warning")
    try:
        socket = config.bind_socket()
    except SystemExit:  # uvicorn has logged why
        raise UserError(
            f"--host {options.host}, --port {options.port}: cannot be used; name another one"
        ) from None
    socket.listen(2048)  # from now on, callers wait for the server to start
    if examiner.rules.doubt:
        print(DOUBTS[examiner.rules.doubt], file=sys.stderr)
    host = f"[{address}]" if ":" in address else address
    number = socket.getsockname()[1]  # chosen by the system where --port is 0
    print(f"http://{host}:{number} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run([socket])


if __name__ == "__main__":
    run_command(main)
