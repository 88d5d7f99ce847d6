"""The stages of the pipeline, one module each: `python -m stages.NAME` (see dvc.yaml).

Python runs this file before the heavy imports of a stage. Code that must run that early is here. It
runs only under `python -m`, while sys.argv[0] is "-m": importing a stage has no effect.
"""

import os
import sys

if sys.argv[0] == "-m":
    # The threads of OpenMP spin while they wait, which makes training several times slower beside
    # another busy program. PyTorch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "DVC_STAGE" in os.environ:
        from stages.lib.core.stopping import start_dvc_watch

        start_dvc_watch()
