"""Where the files of the pipeline are, relative to the root of the repository.

dvc.yaml names the same paths (a test compares them), and DVC notices a change there. So this file
is no dependency of a stage: a new output does not run the older stages again.
"""

from pathlib import Path

PARAMS = Path("params.yaml")

# data/ belongs to DVC
SAMPLE = Path("data/raw/sample")  # the embedded data set, which is generated
PACKED = Path("data/packed")
LABELS = Path("data/labels")
MODEL = Path("data/model")
WEIGHTS = MODEL / "weights.safetensors"
CONFIG = MODEL / "config.json"
DISTANCE = MODEL / "distance.safetensors"
HISTORY = MODEL / "history.csv"
SCORES = Path("data/scores")
SCORED_VIEWS = SCORES / "views.json"
VERDICT_RULES = Path("data/verdict_rules.json")
EXPLANATIONS = Path("data/explanations")
SHEETS = EXPLANATIONS / "sheets"  # the images of the explanations
CARD_PAGE = Path("data/card/model_card.html")
SUBMISSION = Path("data/submission/submission.csv")
PUBLISHED = Path("data/published.json")

# metrics/ belongs to Git
DATA_REPORT = Path("metrics/data.json")
EVALUATION = Path("metrics/evaluation.json")
TABLES = Path("metrics/tables")
PLOTS = Path("metrics/plots")
CARD = Path("metrics/model_card.md")
LEFT_OUT = Path("metrics/left_out.csv")  # stages.chores.left_out writes it
