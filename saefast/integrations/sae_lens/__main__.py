"""Run SAELens's command line with saefast's architectures registered.

python -m saefast.integrations.sae_lens --architecture saefast_topk ...
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__")
