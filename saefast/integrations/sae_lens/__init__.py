"""Training architectures and inference SAEs of SAELens with saefast inside.

Importing this registers `saefast_topk`, `saefast_abstopk`, `saefast_batchtopk`,
`saefast_matryoshka_batchtopk`, `saefast_standard` and `saefast_jumprelu` beside SAELens's own
architectures of these names, with the same settings, losses and files. The trainer, its clipping
and its Adam stay SAELens's, and so do inference files. `accelerate` speeds up an existing inference
SAE.

Activations are dense, as SAELens's are, or sparse tensors with `use_sparse_activations=True`. The
latter is faster still: the trainer counts activations, which takes longer than the rest of the
forward pass if they are dense. `hidden_pre`, which the trainer does not read, is computed when it
is read. SAELens's own computation runs where dense activations or pre-activations are hooked, where
a batch is too small for sparse codes to be faster, and in steps of standard and JumpReLU SAEs that
are still dense, see `thresholds`; activations of those two are never sparse tensors, since SAELens
has no such setting for them.

`python -m saefast.integrations.sae_lens` is SAELens's command line with these architectures.
"""

from saefast.integrations.sae_lens.architectures import (
    FastAbsTopKSAE,
    FastJumpReLUSAE,
    FastTopKSAE,
    SaefastAbsTopKTrainingSAE,
    SaefastAbsTopKTrainingSAEConfig,
    SaefastBatchTopKTrainingSAE,
    SaefastBatchTopKTrainingSAEConfig,
    SaefastMatryoshkaBatchTopKTrainingSAE,
    SaefastMatryoshkaBatchTopKTrainingSAEConfig,
    SaefastTopKTrainingSAE,
    SaefastTopKTrainingSAEConfig,
    accelerate,
)
from saefast.integrations.sae_lens.thresholds import (
    SaefastJumpReLUTrainingSAE,
    SaefastJumpReLUTrainingSAEConfig,
    SaefastStandardTrainingSAE,
    SaefastStandardTrainingSAEConfig,
)

__all__ = [
    "FastAbsTopKSAE",
    "FastJumpReLUSAE",
    "FastTopKSAE",
    "SaefastAbsTopKTrainingSAE",
    "SaefastAbsTopKTrainingSAEConfig",
    "SaefastBatchTopKTrainingSAE",
    "SaefastBatchTopKTrainingSAEConfig",
    "SaefastJumpReLUTrainingSAE",
    "SaefastJumpReLUTrainingSAEConfig",
    "SaefastMatryoshkaBatchTopKTrainingSAE",
    "SaefastMatryoshkaBatchTopKTrainingSAEConfig",
    "SaefastStandardTrainingSAE",
    "SaefastStandardTrainingSAEConfig",
    "SaefastTopKTrainingSAE",
    "SaefastTopKTrainingSAEConfig",
    "accelerate",
]
