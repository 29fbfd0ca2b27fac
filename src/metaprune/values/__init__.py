"""The values that travel between the parts: frozen, JSON-able where they are saved, and free of torch."""

from metaprune.values.budget import Budget
from metaprune.values.constraints import Constraints, as_patterns
from metaprune.values.cost import Cost
from metaprune.values.plan import Plan
from metaprune.values.proposal import Proposal, Trial
from metaprune.values.space import Branch, ChannelGroup, LockedDim, Member, Space

__all__ = [
    "Branch",
    "Budget",
    "ChannelGroup",
    "Constraints",
    "Cost",
    "LockedDim",
    "Member",
    "Plan",
    "Proposal",
    "Space",
    "Trial",
    "as_patterns",
]
