"""The files that a report reads of a run with many latents, without training them."""

from pathlib import Path

import numpy as np

from saefast.disk.tables import write_json, write_table
from saefast.lm import builtin_corpus
from saefast.run_folder import CONTEXTS, FEATURES, STABILITY
from saefast.stability.result import CURVE

SEEDS = 4
CONTEXTS_OF_FEATURE = 5
_BEFORE, _TOKEN, _AFTER = 47, 4, 24
"""Numbers of characters, as in contexts of 12 tokens before and 6 after"""


def large_run(run: Path, latents: int) -> Path:
    """Write tables of SAEs with that many latents, all alive, with texts of the built-in corpus."""
    generator = np.random.default_rng(0)
    count = SEEDS * latents
    seed, feature = np.divmod(np.arange(count), latents)
    others = np.array([[each for each in range(SEEDS) if each != own] for own in range(SEEDS)])
    similarity = np.zeros((count, SEEDS), dtype=np.float32)
    partner = np.full((count, SEEDS), -1)
    for place in range(SEEDS - 1):
        column = others[seed, place]
        similarity[np.arange(count), column] = generator.beta(2, 2, count)
        partner[np.arange(count), column] = generator.integers(0, latents, count)
    support = 1 + (similarity >= 0.7).sum(1)
    score = (support - 1) / (SEEDS - 1)
    group = np.where(score >= 0.8, "stable", np.where(score <= 0.2, "unstable", "mixed"))
    text = _text(16 * count)
    starts = generator.integers(0, len(text) - 200, count * CONTEXTS_OF_FEATURE)
    ends = np.cumsum([_BEFORE, _TOKEN, _AFTER])
    before, token, after = (
        [text[start + a : start + b] for start in starts]
        for a, b in zip([0, *ends], ends, strict=False)
    )
    write_table(
        run / FEATURES,
        {
            "seed": seed,
            "feature": feature,
            "firing_rate": generator.lognormal(-6, 1.5, count).clip(1e-6, 1),
            "group": group.tolist(),
            "alive": np.ones(count, dtype=bool),
            "score": score,
            "support": support,
            "low": score * 0.6,
            "high": 0.5 + score / 2,
            "soft": similarity.sum(1) / (SEEDS - 1),
            "similarity": list(similarity),
            "partner": list(partner),
            "effect": generator.lognormal(-9, 1, count),
            "token_text": token[::CONTEXTS_OF_FEATURE],
            "token_auroc": 0.5 + generator.random(count) / 2,
        },
    )
    write_table(
        run / CONTEXTS,
        {
            "seed": np.repeat(seed, CONTEXTS_OF_FEATURE),
            "feature": np.repeat(feature, CONTEXTS_OF_FEATURE),
            "value": generator.gamma(4.0, 10.0, len(starts)),
            "before": before,
            "token": token,
            "after": after,
        },
    )
    counts = [
        {
            "seed": own,
            "alive": latents,
            "dead": 0,
            "stable": int((group[seed == own] == "stable").sum()),
            "unstable": int((group[seed == own] == "unstable").sum()),
        }
        for own in range(SEEDS)
    ]
    rule = {
        "threshold": 0.7,
        "match": "nearest",
        "side": "decoder",
        "absolute": False,
        "same_partner": False,
        "confidence": 0.95,
        "width": 2304,
    }
    curve = [
        {"threshold": at, "score": 1 - at, "stable": 0.0, "unstable": 0.0, "chance": (1 - at) ** 9}
        for at in CURVE
    ]
    write_json(
        run / STABILITY,
        {
            "rule": rule,
            "stable_cut": 0.8,
            "unstable_cut": 0.2,
            "least_rate": 0.0,
            "thresholds": [0.7] * SEEDS,
            "chance": [1e-9] * SEEDS,
            "mean": float(score.mean()),
            "seeds": counts,
            "curve": curve,
        },
    )
    return run


def _text(characters: int) -> str:
    """Return at least that many characters of the built-in corpus, as far as it has them."""
    parts, length = [], 0
    for document in builtin_corpus():
        parts.append(document.text)
        length += len(document.text)
        if length >= characters:
            break
    return "".join(parts)
