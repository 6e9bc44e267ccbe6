"""No library may load compiled code from a hub: nobody has read it, and a run must not depend on what is there today."""

from __future__ import annotations

import logging
import os
import sys

KERNELS_PACKAGE = "kernels"
"""Downloads and loads kernels. transformers and bitsandbytes use it where it is installed; both have code of their own too."""

SWITCH = "USE_HUB_KERNELS"
"""transformers reads it; processes of this one inherit it, whatever they import."""


def forbid_hub_code() -> None:
    """Make the libraries of this process find no package for kernels from a hub, unless the user has imported it already.

    Those of processes that it starts find it switched off, unless the user has set the switch.
    """
    # With None here, Python reports that there is no such module.
    sys.modules.setdefault(KERNELS_PACKAGE, None)  # type: ignore[arg-type]
    os.environ.setdefault(SWITCH, "NO")
    # bitsandbytes warns that it could not load one, at import, on CPUs with bfloat16.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
