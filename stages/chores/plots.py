"""Draw what `dvc plots` draws, on a page that needs no network.

Run: python -m stages.chores.plots                 (the workspace, as `dvc plots show`)
     python -m stages.chores.plots diff here aside (experiments, as `dvc plots diff here aside`)

A page of `dvc plots` loads Vega, which draws the curves, from the network. Here the page contains
it. All arguments go to `dvc plots`, and the exit code is that of `dvc plots`.
"""

import subprocess
import sys
from pathlib import Path

import vl_convert
from dvc_render.html import PAGE_HTML

from stages.lib import paths
from stages.lib.core.digests import checked_tables
from stages.lib.core.files import write_text
from stages.lib.running import run_command
from stages.tools.command_line import parser_of

TEMPLATE = Path(".dvc/tmp/plots.html")
VEGA_LITE = "5.21"  # DVC's templates are of version 5


def main() -> None:
    """Write dvc_plots/index.html; exits as DVC does. Raises UserError for damaged curves."""
    _, arguments = parser_of(__doc__, "stages.chores.plots").parse_known_args()
    if not arguments:
        checked_tables(paths.PLOTS, "evaluate")  # of a damaged one, DVC would draw the rest
    write_text(TEMPLATE, template())
    command = [sys.executable, "-m", "dvc", "plots", *(arguments or ["show"])]
    command += ["--html-template", str(TEMPLATE.resolve())]
    sys.exit(subprocess.run(command, check=False).returncode)


def template() -> str:
    """Return DVC's page with Vega in the place of the links to it."""
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    vega = vega.replace("</script", r"<\/script")  # it would end the script
    return PAGE_HTML.replace("{scripts}", f"<script>{vega}</script>")


if __name__ == "__main__":
    run_command(main)
