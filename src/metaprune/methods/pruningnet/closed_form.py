"""A PruningNet without training: weights of any structure solved from one calibration pass over a trained network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from metaprune.calibration.calibrate import Calibration
from metaprune.calibration.closed_form import ClosedForm
from metaprune.network import Network
from metaprune.search.encoding import WidthEncoding


class ClosedFormSupernet:
    """The given network at any widths, as a `Supernet` is to a `Scorer`."""

    def __init__(self, network: Network, codec: WidthEncoding, calibration: Calibration):
        self.network, self.codec = network, codec
        self._closed_form = ClosedForm(network, calibration)

    def weights(self, widths: np.ndarray, full_size: bool = False) -> tuple[Mapping[str, Tensor], Any]:
        """Make the tensors of a structure, and its survivors. full_size: not cropped, as a `Proposal` carries them."""
        plan = self.codec.plan(widths)
        make = self._closed_form.full_size if full_size else self._closed_form.tensors
        return make(plan), self.codec.survivors(self.network, widths)
