"""Group lasso: training drives whole channels to zero, by a price on the norm of all that each of them holds."""

from metaprune.protocol.spec import MethodSpec

METHOD = MethodSpec(
    name="group_lasso",
    config="metaprune.methods.group_lasso.config:GroupLassoConfig",
    method="metaprune.methods.group_lasso.method:GroupLasso",
)
