"""Networks met outside: users' threads, four peers' test suites, packages. Names and sources of what was tried once.

Each is built small, with random weights, from its package or from a description of what the thread or test computes.
"""

from __future__ import annotations

from typing import Any

from outside_hf import HUGGING
from outside_oto import OTO
from outside_packages import PACKAGES
from outside_peers import PEERS
from outside_spec import Builder
from outside_threads import THREADS
from outside_tinynn import TINYNN
from outside_uses import DETECTION, USES

FREE = {"free_outputs": True}  # pieces of networks: the tests they are from prune their outputs too
# name -> (builder, options of trace, packages that have to be installed)
OUTSIDE: dict[str, tuple[Builder, dict[str, Any], tuple[str, ...]]] = {
    **{f"thread {name}": (build, {}, ()) for name, build in THREADS.items()},
    **{f"use {name}": (build, {}, ()) for name, build in (USES | DETECTION).items()},
    **{name: (build, FREE, ()) for name, build in TINYNN.items()},
    **{name: (build, {}, ()) for name, build in (PEERS | OTO).items()},
    **{f"hf {name}": (build, {}, ()) for name, build in HUGGING.items()},
    **{name: (build, {}, (package,)) for name, (build, package) in PACKAGES.items()},
}
