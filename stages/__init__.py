"""The stages of the pipeline, one module each: `python -m stages.NAME` (see dvc.yaml).

Python runs this file before the heavy imports of a stage. Code that must run that early is here. It
runs only under `python -m`, while sys.argv[0] is "-m": importing a stage has no effect.
"""

import os
import signal
import sys

if sys.argv[0] == "-m":
    # The threads of OpenMP spin while they wait for each other, which makes training several times
    # slower beside another busy program. Spinning for less time helps there and costs little
    # elsewhere (tests/benchmarks/sharing.py). PyTorch reads this when it is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from stages.lib.core.arithmetic import pin_kernels
    from stages.lib.core.params import wanted_arithmetic

    pin_kernels(wanted_arithmetic())
    # Until `run_stage` handles it, Ctrl-C ends the process without a traceback of the imports.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "DVC_STAGE" in os.environ or "RANK" in os.environ:
        from stages.lib.stopping import start_watch

        start_watch()
