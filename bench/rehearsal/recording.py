"""Recording of the kernels that programs launch, as Triton would compile them."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from triton import knobs

Program = Callable[[], object]


class Launched(NamedTuple):
    """One kernel with one specialisation of its arguments."""

    module: str
    kernel: str
    specialisation: str
    """JSON that Triton's `JITFunction.preload` takes

    It holds types of arguments, constants, alignments, number of warps, and so on.
    """

    @property
    def described(self) -> dict[str, Any]:
        """Properties that distinguish this from other launches of the kernel, for readers.

        `constants` are those of the kernel's signature and arguments that equal 1, which Triton
        compiles as constants; `odd` are the integers and addresses not known to be divisible by 16.
        """
        data = json.loads(self.specialisation)
        names = list(data["signature"])
        constants = {
            names[path[0]]: value
            for path, value in zip(data["constant_keys"], data["constant_vals"], strict=True)
        }
        aligned = {
            names[path[0]]
            for path, value in zip(data["attrs_keys"], data["attrs_vals"], strict=True)
            if ["tt.divisibility", 16] in value
        }
        types = {name: kind for name, kind in data["signature"].items() if kind != "constexpr"}
        odd = [n for n, kind in types.items() if re.match(r"\*|i\d", kind) and n not in aligned]
        warps, stages = data["options"]["num_warps"], data["options"]["num_stages"]
        return {
            "kernel": self.kernel,
            "types": " ".join(types.values()),
            "odd": " ".join(odd),
            "constants": ", ".join(f"{name}={value}" for name, value in constants.items()),
            "warps": warps,
            "stages": stages,
        }


@contextmanager
def recording() -> Iterator[dict[Launched, None]]:
    """Collect launches in order, without compiling or running anything.

    Triton asks its cache hook before it compiles a kernel; a hook that answers True ends the
    launch. Later launches on the same device find a kernel that does nothing, which saves time.

    Yields:
        Launches so far, as the keys of a dict in their order.
    """
    launched: dict[Launched, None] = {}
    nothing = SimpleNamespace(
        function=None,
        packed_metadata=None,
        launch_metadata=lambda *arguments: None,
        run=lambda *arguments: None,
    )

    def hook(*, key: str, fn: Any, compile: dict[str, Any], **others: object) -> bool:
        launched[Launched(fn.module, fn.name, compile["specialization_data"])] = None
        kernels, *_ = fn.jit_function.device_caches[compile["device"]]
        kernels[key] = nothing
        return True

    with mock.patch.object(knobs.runtime, "jit_cache_hook", hook):
        yield launched
