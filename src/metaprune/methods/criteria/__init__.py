"""Plain criteria and controls: they rank channels, and learn nothing."""

from metaprune.protocol.spec import MethodSpec


def _spec(name: str, kind: str, report: str | None = None) -> MethodSpec:
    here = "metaprune.methods.criteria"
    return MethodSpec(name=name, config=f"{here}.config:{kind}Config", method=f"{here}.{name}:{kind}", report=report)


UNIFORM = _spec("uniform", "Uniform")
RANDOM = _spec("random", "Random")
MAGNITUDE = _spec("magnitude", "Magnitude")
BN_SCALE = _spec("bn_scale", "BNScale")
LAMP = _spec("lamp", "Lamp")
FPGM = _spec("fpgm", "FPGM")
SNIP = _spec("snip", "Snip")
TAYLOR = _spec("taylor", "Taylor")
TAYLOR_BATCH = _spec("taylor_batch", "TaylorBatch")
# sections look at the record, not at the method: one stands for all that rank
ACTIVATION = _spec("activation", "Activation", report="metaprune.methods.criteria.report:section")
EXPERTS = _spec("experts", "Experts")
VARIANCE = _spec("variance", "Variance")
OBS = _spec("obs", "OBS")
