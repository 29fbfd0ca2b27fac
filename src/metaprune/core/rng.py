"""One handle for randomness: every random stream in metaprune is derived from one seed and a path of names.

Streams depend on (seed, path) only, never on call order, so that the same seed gives the same plan in another
process and adding a consumer does not shift the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from metaprune.core.arguments import check_arguments

if TYPE_CHECKING:
    import numpy as np
    import torch


class Rng:
    """A seed and a path; `child(name)` names an independent stream."""

    def __init__(self, seed: int, path: tuple[str, ...] = ()):
        check_arguments(Rng.__init__, locals())
        self.seed = int(seed)
        self.path = path

    def child(self, *names: object) -> Rng:
        """Name an independent stream; the same names give the same one."""
        return Rng(self.seed, (*self.path, *(str(n) for n in names)))

    def integer(self) -> int:
        """Derive a 63-bit integer from (seed, path)."""
        text = "/".join((str(self.seed), *self.path)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    def numpy(self) -> np.random.Generator:
        """Make a generator of NumPy; each call starts the stream anew."""
        import numpy as np

        return np.random.default_rng(self.integer())

    def torch(self, device: str = "cpu") -> torch.Generator:
        """Make a generator of torch; each call starts the stream anew."""
        import torch

        return torch.Generator(device=device).manual_seed(self.integer())

    @contextmanager
    def torch_global(self) -> Iterator[None]:
        """Seed torch's global generators inside the block (initialisation, dropout); restore them afterwards."""
        import torch

        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.integer())
            yield

    def __repr__(self) -> str:
        return f"Rng({self.seed}, {self.path})"
