"""The design's rules, as tests."""

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.closure import import_closure
from tests.conftest import ROOT, environment, run

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = {name: stage.get("do", stage) for name, stage in DVC["stages"].items()}
MODULES = sorted(path for path in (ROOT / "stages").rglob("*.py"))
TOP_LEVEL = {"dvc.yaml", "params.yaml", "stages", "data", "metrics", "tests", "requirements.txt",
             "README.md", "LICENSE", "Makefile", "pyproject.toml", "dvc.lock"}  # fmt: skip


def stage_params() -> dict[str, dict[str, type]]:
    """Return, for every stage, the sections that its module loads and their models."""
    found: dict[str, dict[str, type]] = {}
    for stage in STAGES:
        module = __import__(f"stages.{stage}", fromlist=["_"])
        loads = re.findall(r'load_params\("(\w+)", (\w+)\)', Path(module.__file__).read_text())
        found[stage] = {section: getattr(module, model) for section, model in loads}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_name_every_module_that_the_stage_imports(stage: str) -> None:
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    needed = import_closure(f"stages.{stage}")
    if "stages/lib/tracking.py" in needed and stage == "train":
        needed |= import_closure("stages.lib.served_model")  # logged as a file, not imported
    assert listed == needed


def test_every_stage_is_a_module_of_its_name_and_the_other_way_round() -> None:
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    for name, stage in STAGES.items():
        assert stage["cmd"].removesuffix(" ${key}") == f"python -m stages.{name}"
        assert stage["desc"]


def test_every_parameter_is_declared_by_the_stage_that_dvc_reruns_for_it() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    declared = {}
    for stage, sections in stage_params().items():
        watched = {name.split(".")[0] for name in STAGES[stage]["params"]}
        if stage == "pack_set":  # DVC knows its folder as a dependency and its name by the command
            watched.add("data")
        assert watched == set(sections), stage
        declared |= {section: set(model.model_fields) for section, model in sections.items()}
    assert {section: set(content) for section, content in params.items()} == declared


def test_every_parameter_is_read() -> None:
    sources = "\n".join(path.read_text() for path in MODULES)
    for sections in stage_params().values():
        for section, model in sections.items():
            for name in model.model_fields:
                assert re.search(rf"\.{name}\b", sources), f"{section}.{name} is never read"


def test_every_parameter_has_a_comment() -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r" +\w+: \S", line):
            assert "#" in line or before.strip().startswith("#"), line


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_stages_do_not_import_stages_and_lib_does_not_import_them(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stages"):
            assert node.module.startswith("stages.lib"), f"{own} imports {node.module}"


def test_importing_has_no_effect(tmp_path: Path) -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (0, "", []), done.stderr


def test_mlflow_is_imported_only_where_it_is_used() -> None:
    """Stages start fast, and train where MLflow is not installed and tracking is off."""
    imports = "".join(f"import stages.{stage}\n" for stage in STAGES)
    code = f"{imports}import sys; print('mlflow' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "False"


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


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    for line in filter(None, lines):
        assert line.startswith("#") or re.fullmatch(r"[\w-]+==[\w.]+", line), line


def test_dvc_lock_is_of_this_code_and_these_params() -> None:
    """The committed metrics are those of the committed code: nothing is left to reproduce."""
    done = run("dvc", "repro", "--dry", "--allow-missing", cwd=ROOT)
    assert "Running stage" not in done.stdout, done.stdout
