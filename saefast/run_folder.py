"""Names of the files in the folder of a run.

Each stage of a run computes its files from the files of earlier stages; the report reads all of
them and states which are missing.

    settings.json       settings of the run: `saefast.pipeline.RunSettings`
    stages.json         finished stages, with a digest of their inputs and their duration
    run.json metrics.jsonl seed-*/        written by `train_saes`
    store/train store/held-out            activations harvested by the run itself
    features.parquet    a row for each seed and feature; see `FEATURE_COLUMNS`
    matches/decoder matches/encoder       results of `match_all`: a table for each pair of SAEs
    stability.json      the rule, the shares of stable and unstable features, the curve, the null
    overlap.parquet     a row for each measure of each pair of SAEs: `Measure` and a, b
    membership.json     in how many SAEs each feature occurs, and how many occur in one only
    subspaces/*.parquet the tables of `Subspaces`, and contributions.parquet: the rows of
                        `Contributions`; skipped.json: results that could not be computed
    evaluation.json     explained variance, keep-only and drop, and CE and KL if there is a model
    contexts.parquet    the text around the largest activations
    evaluation/         scores.parquet: a row for each `Score` of all evaluations that ran;
                        NAME.json: `EvaluationSummary` of each, by `evaluation_file`
    pooled/ pooling.json                  the pooled SAE and its comparison with the controls
    report.html
    unfinished/         intermediate state from which an interrupted stage resumes
"""

SETTINGS = "settings.json"
STAGES = "stages.json"
TRAIN_ROWS = "store/train"
HELD_OUT_ROWS = "store/held-out"
FEATURES = "features.parquet"
MATCHES = "matches"
STABILITY = "stability.json"
OVERLAP = "overlap.parquet"
MEMBERSHIP = "membership.json"
SUBSPACES = "subspaces"
CONTRIBUTIONS = "contributions.parquet"
SKIPPED = "skipped.json"
EVALUATION = "evaluation.json"
EVALUATIONS = "evaluation"
SCORES = f"{EVALUATIONS}/scores.parquet"
CONTEXTS = "contexts.parquet"
POOLED = "pooled"
POOLING = "pooling.json"
REPORT = "report.html"
UNFINISHED = "unfinished"

EVALUATION_NAMES = ("probe", "explain", "steer", "edit", "absorb", "core")

SUBSPACE_TABLES = ("spectra", "singular_values", "pairs", "curves", "angles", "nulls")

FEATURE_COLUMNS = {
    "seed": "seed of the SAE",
    "feature": "index of the feature in the SAE",
    "alive": "whether the feature fires; dead features have no score",
    "firing_rate": "share of the evaluated rows on which the feature is active; accompanied by the "
    "other columns of `FeatureStatistics.to_table`",
    "group": "stable, mixed, unstable or dead",
    "score": "share of the other SAEs that contain the feature; accompanied by support, low, high "
    "and soft of `Stability`",
    "similarity": "[SAEs] similarity to the partner in each SAE",
    "partner": "[SAEs] index of the partner in each SAE, -1 for none",
    "effect": "share of the variance that is lost if only this feature is removed",
    "explanation": "text of the feature's rule or of a judge, null if it was not explained",
    "explanation_kind": "kind of the explanation: surface, context, syntax, topic or unclear",
    "rule_score": "balanced accuracy of the rule on held-out text",
    "rule_null": "rule_score that the rule of a scrambled feature of equal frequency exceeds with "
    "probability 1/20",
    "detection": "accuracy of predicting from the explanation in which windows the feature fires",
    "fuzzing": "accuracy of judging by the explanation whether the feature fires on marked tokens",
    "detection_shuffled": "detection with the explanation of another feature of equal frequency",
    "steer_success": "share of steered texts that express the explanation more strongly",
    "steer_success_control": "steer_success with the direction of another feature",
    "steer_detection": "detection of the rule of a feature that is steered with; accompanied by "
    "steer_specificity (minus detection with another rule) and steer_fuzzing",
    "output_score": "how strongly amplifying the feature promotes the tokens of its decoder row",
    "input_score": "share of its largest activations that are on tokens of its decoder row",
}
"""Columns of features.parquet; from `explanation` on they are null for features that were not
evaluated."""


def evaluation_file(name: str) -> str:
    """Return the path of an evaluation's summary, relative to the folder of the run."""
    return f"{EVALUATIONS}/{name}.json"
