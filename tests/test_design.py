"""The design's rules, as tests."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.publishing.served_code import import_closure
from tests.conftest import ROOT, environment, run

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = {name: stage.get("do", stage) for name, stage in DVC["stages"].items()}
# Where things are, how a stage starts and stops, and its messages of progress.
CHANGE_NO_RESULT = {
    "stages/__init__.py",
    *(
        f"stages/lib/{name}.py"
        for name in ("__init__", "paths", "running", "progress", "stopping", "torchrun")
    ),
}
PACKING = {"pack_set": "pack", "pack_training_set": "pack"}  # for each set of a mapping
MODULES = sorted(path for path in (ROOT / "stages").rglob("*.py"))
TOP_LEVEL = {"dvc.yaml", "params.yaml", "stages", "data", "metrics", "tests", "requirements.txt",
             "README.md", "LICENSE", "Makefile", "pyproject.toml", "dvc.lock"}  # fmt: skip


def module_of(stage: str) -> str:
    return STAGES[stage]["cmd"].split()[2]


def closure_of(stage: str) -> set[str]:
    """Return the files whose changes may change what a stage writes.

    The served model is among them, which is logged by its path.
    """
    needed = import_closure(module_of(stage))
    if "stages/lib/publishing/logged_model.py" in needed:
        needed |= import_closure("stages.lib.publishing.served_model")
    return needed - CHANGE_NO_RESULT


def loaded_params(stage: str) -> dict[str, type]:
    """Return the sections of params.yaml that a stage loads, in any of its files, with models."""
    found: dict[str, type] = {}
    for path in import_closure(module_of(stage)):
        loads = re.findall(r'load_params\("(\w+)", (\w+)\)', (ROOT / path).read_text())
        module = import_module(path.removesuffix(".py").replace("/", "."))
        found |= {section: getattr(module, model) for section, model in loads}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_cover_every_module_that_the_stage_imports_and_no_idle_room(stage: str) -> None:
    listed = {Path(dep) for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    needed = {Path(path) for path in closure_of(stage)}
    for path in needed:
        assert listed & {path, *path.parents}, f"{path} is not under a dependency"
    for dep in listed:
        assert any(dep in (path, *path.parents) for path in needed), f"{dep} is not needed"


def test_an_edit_retrains_only_where_the_model_may_change() -> None:
    """Metrics, plots, pages, the served model, the registry and the layouts are not among these."""
    deps = {dep for dep in STAGES["train"]["deps"] if dep.startswith("stages/")}
    rooms = {"core", "images", "detector", "training", "tracking"}
    assert deps == {"stages/train.py", *(f"stages/lib/{room}" for room in rooms)}


def test_only_train_and_publish_know_mlflow() -> None:
    """The other stages are pure: files in, files out."""
    for stage in STAGES:
        rooms = {path.split("/")[2] for path in closure_of(stage) if path.startswith("stages/lib")}
        knows = bool(rooms & {"tracking", "publishing"})
        assert knows == (stage in ("train", "publish")), stage


def test_every_stage_is_a_module_and_the_other_way_round() -> None:
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert {module_of(stage) for stage in STAGES} == {f"stages.{name}" for name in modules}
    for name, stage in STAGES.items():
        # Nothing from params.yaml is in a command line: a shell would read it before any check.
        assert stage["cmd"] == f"python -m stages.{PACKING.get(name, name)}"
        assert stage["desc"]


def test_every_parameter_is_declared_by_the_stage_that_dvc_reruns_for_it() -> None:
    """test_pipeline.py checks that each one is read."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    declared: dict[str, set[str]] = {}
    for stage in STAGES:
        watched = {name.split(".")[0] for name in STAGES[stage].get("params", [])}
        if stage in PACKING:  # DVC knows its folder as a dependency and its name by the output
            watched.add("data")
        if stage == "card":  # compares what decides the weights as it stands, and uses none of it
            watched.remove("train")
        sections = loaded_params(stage)
        assert watched == set(sections), stage
        declared |= {section: set(model.model_fields) for section, model in sections.items()}
    assert {section: set(content) for section, content in params.items()} == declared


def test_every_parameter_has_a_comment() -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r" +\w+: \S", line):
            assert "#" in line or before.strip().startswith("#"), line


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_stages_do_not_import_stages_and_lib_does_not_import_them(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    is_command = own.startswith(("stages.tools", "stages.chores"))
    allowed = ("stages.lib", *(("stages.tools.command_line",) if is_command else ()))
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if name.startswith("stages"):
            assert name.startswith(allowed), f"{own} imports {name}"


COMMANDS = [
    f"stages.{path.parent.name}.{path.stem}"
    for path in MODULES
    if path.parent.name in ("tools", "chores") and path.stem not in ("__init__", "command_line")
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reads_its_arguments_in_the_same_way(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--help shows the text of the module, and a wrong command is one line with exit code 1."""
    command = import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        command.main()
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert printed.startswith(f"usage: python -m {name} ") and str(command.__doc__) in printed
    if name != "stages.chores.plots":  # its arguments are those of dvc
        monkeypatch.setattr(sys, "argv", [name, "--nonsense"])
        with pytest.raises(UserError, match="; see --help$"):
            command.main()


def test_importing_has_no_effect_and_mlflow_is_imported_only_where_it_is_used(
    tmp_path: Path,
) -> None:
    """Stages start fast, and train where MLflow is not installed and tracking is off."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    code = """
import importlib, sys
stages, others = (sys.argv[number].split() for number in (1, 2))
for name in stages: importlib.import_module(name)
assert "mlflow" not in sys.modules
for name in others: importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(map(module_of, STAGES)), " ".join(names)],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (0, "", []), done.stderr


def test_dvc_and_the_code_have_the_same_paths() -> None:
    """paths.py is no dependency of a stage, because dvc.yaml has every path as well."""
    named = {path for name, path in vars(paths).items() if name.isupper()}
    known = (ROOT / "dvc.yaml").read_text().split()
    for path in named - {paths.PARAMS}:
        inside = [one for one in known if one.startswith("data/") or one.startswith("metrics/")]
        assert any(Path(one.rstrip(":")) in (path, *path.parents) for one in inside) or any(
            path in Path(one.rstrip(":")).parents for one in inside
        ), path


def test_modules_are_neither_long_nor_tiny_and_the_pages_short() -> None:
    for path in MODULES:
        num_lines = len(path.read_text().splitlines())
        assert path.name == "__init__.py" or 15 <= num_lines <= 300, (path, num_lines)
    pages = [ROOT / "README.md", *ROOT.glob("[!.]*/README.md")]
    assert sum(len(page.read_text().splitlines()) for page in pages) <= 1000


def test_train_has_only_cached_outputs() -> None:
    assert all(isinstance(out, str) for out in STAGES["train"]["outs"])
    assert "metrics" not in STAGES["train"]
    assert "plots" not in STAGES["train"]


def test_train_sees_no_test_data() -> None:
    deps = STAGES["train"]["deps"]
    assert not [dep for dep in deps if "test" in dep or "calibration" in dep]
    assert "data/packed" not in deps


def test_the_top_level_holds_what_was_agreed() -> None:
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.split()
    top = {name.split("/")[0] for name in listed}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_every_requirement_is_pinned_and_the_lock_is_of_the_direct_pins() -> None:
    """requirements.txt is what `make lock` makes of pyproject.toml, with all that those need."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line), line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    assert {pin.lower().replace("ruamel.yaml", "ruamel-yaml") for pin in direct} <= set(pins)
    assert len(pins) > 3 * len(direct)
    assert not [line for line in lines if "://" in line]


def test_dvc_lock_is_of_this_code_and_these_params() -> None:
    """The committed metrics are those of the committed code: nothing is left to reproduce."""
    done = run("dvc", "repro", "--dry", "--allow-missing", cwd=ROOT)
    assert "Running stage" not in done.stdout, done.stdout
