"""Start the processes of a stage on this machine with torchrun, and end in one line of error.

Run: python -m stages.lib.detector.launch stages.NAME NUM_PROCESSES

torchrun itself ends with a long report and a traceback where one of its processes fails. Here a
process tells its own error, and this module tells of one that was killed.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args
from torch.distributed.run import run as torchrun

from stages.lib.core.running import AFTER_A_KILL

ENDED = -signal.SIGTERM  # by torchrun itself


def main(arguments: Sequence[str]) -> None:
    """Run the module of a stage in processes that form one group; exits as they do."""
    module, num_processes = arguments
    logging.disable()  # of torchrun's words
    try:
        torchrun(parse_args(["--standalone", f"--nproc-per-node={num_processes}", "-m", module]))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        killed = {rank: -code for rank, code in codes.items() if code < 0 and code != ENDED}
        for rank, number in list(killed.items())[:1]:
            print(f"error: process {rank} of {num_processes} was killed by "
                  f"{signal.Signals(number).name}; {AFTER_A_KILL}", file=sys.stderr)  # fmt: skip
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
