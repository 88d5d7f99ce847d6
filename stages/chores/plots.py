"""Draw the curves that `dvc plots` draws, on a page that needs no network.

Run: python -m stages.chores.plots                 (the workspace, as `dvc plots show`)
     python -m stages.chores.plots diff here aside (experiments, as `dvc plots diff here aside`)

A page of `dvc plots` loads what draws it, Vega, from the network. Here Vega is in the page.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import vl_convert
from dvc_render.html import PAGE_HTML

from stages.lib import paths
from stages.lib.core.digests import checked_tables
from stages.lib.core.files import write_text
from stages.lib.running import run_command

TEMPLATE = Path(".dvc/tmp/plots.html")
VEGA_LITE = "5.21"  # DVC's templates are of version 5


def main(arguments: Sequence[str]) -> None:
    """Write dvc_plots/index.html; exits as DVC does. Raises UserError for damaged curves."""
    if not arguments:
        checked_tables(paths.PLOTS, "evaluate")  # DVC draws what is left of a table
    write_text(TEMPLATE, template())
    own = ["--html-template", str(TEMPLATE.resolve())]
    command = [sys.executable, "-m", "dvc", "plots", *(arguments or ["show"]), *own]
    sys.exit(subprocess.run(command, check=False).returncode)


def template() -> str:
    """Return DVC's page with Vega in it, in the place of the links to it."""
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    vega = vega.replace("</script", r"<\/script")  # it would end the script
    return PAGE_HTML.replace("{scripts}", f"<script>{vega}</script>")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
