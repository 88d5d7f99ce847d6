"""Start the processes of a stage on this machine with torchrun; an error is one line.

Run: python -m stages.lib.torchrun stages.NAME NUM_PROCESSES

Where a process fails, torchrun itself ends with a long report and a traceback. Here the process
prints its own error, and this module prints that a process was killed.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args
from torch.distributed.run import run as torchrun

from stages.lib.running import AFTER_A_KILL


def main(arguments: Sequence[str]) -> None:
    """Run the module of a stage in processes that form one group; exits with 1 where one fails."""
    module, num_processes = arguments
    logging.disable()  # torchrun logs many lines where a process fails
    options = ["--standalone", f"--nproc-per-node={num_processes}", "-m", module]
    try:
        torchrun(parse_args(options))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        number = first.exitcode - 128 if first.exitcode > 128 else -first.exitcode
        if number in set(signal.Signals):
            name = signal.Signals(number).name
            message = f"process {rank} of {num_processes} was killed by {name}; {AFTER_A_KILL}"
            print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
