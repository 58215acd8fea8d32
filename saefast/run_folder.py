"""The names of the files in the folder of a run.

Each stage of a run writes its own files from those of stages before it; the report reads them all.
What a stage did not write is not there, and the report says so.

    settings.json       what was asked for: `saefast.pipeline.RunSettings`
    stages.json         which stages are finished, from what, and how long they took
    run.json metrics.jsonl seed-*/        written by `train_saes`
    store/train store/held-out            activations that the run made itself
    features.parquet    a row for each seed and feature; see `FEATURE_COLUMNS`
    matches/decoder matches/encoder       `match_all`: a table for each pair of SAEs
    stability.json      the rule, the shares of stable and unstable features, the curve, the null
    overlap.parquet     a row for each measure of each pair of SAEs: `Measure` and a, b
    membership.json     in how many SAEs features are, and how many are in one only
    subspaces/*.parquet the tables of `Subspaces`, and contributions.parquet: the rows of
                        `Contributions`; skipped.json: what of both could not be computed
    evaluation.json     explained variance, keep-only and drop, CE and KL where there is a model
    contexts.parquet    the text around the largest activations
    evaluation/         scores.parquet: a row for each `Score` of all evaluations that ran;
                        NAME.json: `EvaluationSummary` of each, by `evaluation_file`
    pooled/ pooling.json                  the pooled SAE, and what it is worth beside its controls
    report.html
    unfinished/         what a stage that takes long keeps until it is finished, to go on from
"""

SETTINGS = "settings.json"
STAGES = "stages.json"
STORE = "store"
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
    "seed": "the seed of its SAE",
    "feature": "the number of the latent in it",
    "alive": "whether it fires; the others have no score",
    "firing_rate": "share of the rows looked at on which it is positive; with it come the other "
    "columns of `FeatureStatistics.to_table`",
    "group": "stable, mixed, unstable or dead",
    "score": "share of the other SAEs that have it; with it come support, low, high and soft of "
    "`Stability`",
    "similarity": "[SAEs] to its partner in each",
    "partner": "[SAEs] which feature of each that is, -1 for none",
    "effect": "share of the variance that is lost if it alone is left out",
    "explanation": "text of its rule or of a judge, null where it was not explained",
    "explanation_kind": "kind of the explanation: surface, context, syntax, topic or unclear",
    "rule_score": "balanced accuracy of its rule on held-out text",
    "rule_null": "rule_score that rules of scrambled features as frequent exceed in 1 of 20 cases",
    "detection": "accuracy of telling from the explanation in which windows it fires",
    "fuzzing": "accuracy of telling from the explanation whether the marked tokens are its own",
    "detection_shuffled": "detection with the explanation of another feature as frequent",
    "steer_success": "share of steered texts that show more of what the explanation says",
    "steer_success_control": "steer_success of a direction of another feature",
    "output_score": "how far amplifying it promotes the tokens of its decoder row",
    "input_score": "share of its largest activations that are on tokens of its decoder row",
}
"""Of features.parquet; those from explanation on are null for latents that were not evaluated"""


def evaluation_file(name: str) -> str:
    """Return where in a run the summary of an evaluation is."""
    return f"{EVALUATIONS}/{name}.json"
