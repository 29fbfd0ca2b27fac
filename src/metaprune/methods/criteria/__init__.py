"""Plain criteria and controls: they rank channels, and learn nothing."""

from metaprune.protocol.spec import MethodSpec


def _spec(name: str, kind: str) -> MethodSpec:
    here = "metaprune.methods.criteria"
    return MethodSpec(name=name, config=f"{here}.config:{kind}Config", method=f"{here}.{name}:{kind}")


UNIFORM = _spec("uniform", "Uniform")
RANDOM = _spec("random", "Random")
MAGNITUDE = _spec("magnitude", "Magnitude")
BN_SCALE = _spec("bn_scale", "BNScale")
FPGM = _spec("fpgm", "FPGM")
SNIP = _spec("snip", "Snip")
TAYLOR = _spec("taylor", "Taylor")
TAYLOR_BATCH = _spec("taylor_batch", "TaylorBatch")
ACTIVATION = _spec("activation", "Activation")
VARIANCE = _spec("variance", "Variance")
OBS = _spec("obs", "OBS")
