"""One file per op: schema, shapes for compilers, gradients, and implementations by device.

CPU kernels are C++ (`saefast._native`), GPU kernels Triton or CUDA C++; the reference computes the
rest. Gradients call other ops through the dispatcher, so all ops are registered together here.
"""

from saefast.ops import decode_prefixes as _decode_prefixes  # noqa: F401
from saefast.ops import decode_residual as _decode_residual  # noqa: F401
from saefast.ops import gather_dots as _gather_dots  # noqa: F401
from saefast.ops import keep_of_batch as _keep_of_batch  # noqa: F401
from saefast.ops import latent_sum as _latent_sum  # noqa: F401
from saefast.ops import latent_update as _latent_update  # noqa: F401
