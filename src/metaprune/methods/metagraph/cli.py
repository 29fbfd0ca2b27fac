"""`metaprune graph MODEL`: the network as the graph metanetwork sees it; `metaprune zoo make`: networks to learn on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metaprune.core.errors import ConfigError
from metaprune.runs.verb_tools import console, traced


@dataclass(frozen=True)
class Graph:
    """Show a network as a graph: nodes are channels, edges pairs of channels that share weights."""

    model: tyro.conf.Positional[str]
    """zoo:NAME, timm:NAME_OR_DIR, torchvision:NAME, hf:NAME_OR_DIR or python:module:function."""
    option: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Argument of the model, as num_classes=10; may be repeated."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one sample, as 3 224 224."""
    out: Path | None = None
    """Draw it to this HTML file: a circle per layer, a line per block of edges."""

    def run(self) -> int:
        from metaprune.methods.metagraph.build_graph import build_network_graph

        network_graph = build_network_graph(traced(self.model, self.option, None, self.input_shape)[1])
        out = console()

        def say(text: str) -> None:
            out.print(text, soft_wrap=True)

        say(f"{network_graph.nodes:,} nodes, {network_graph.edge_count:,} edges")
        for title, counts in network_graph.counts().items():
            say(f"{title}: " + ", ".join(f"{kind} {count:,}" for kind, count in counts.items()))
        left = network_graph.uncovered
        say(
            f"not in the graph: {sum(left.values()):,} elements of {', '.join(left)}"
            if left
            else "every parameter is in the graph, each element once"
        )
        if network_graph.breaks:
            say(f"in pieces: no rule follows the channels that are read by {', '.join(network_graph.breaks)}")
        if self.out is not None:
            from metaprune.methods.metagraph.report_plots import graph_figure

            self.out.parent.mkdir(parents=True, exist_ok=True)
            graph_figure(*network_graph.drawn()).write_html(self.out, include_plotlyjs=True)
            say(f"drawn: {self.out}")
        return 0


@dataclass(frozen=True)
class Zoo:
    """Train a zoo of small networks that a scoring rule is learned on: six families, four built-in data sets.

    The same command continues: networks that are there stay.
    """

    action: tyro.conf.Positional[Literal["make"]]
    """What to do."""
    out: Path
    """Folder of the networks."""
    networks: int = 120
    """How many; 120 hold every family, data set and part alike."""
    seed: int = 0
    """Seed of sizes and weights."""
    workers: int = 1
    """Processes that train at once."""

    def run(self) -> int:
        for name in ("networks", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: give 1 or more")
        from metaprune.methods.metagraph.zoo import make_zoo

        out = console()
        make_zoo(self.out, self.networks, self.seed, self.workers, lambda text: out.print(text, soft_wrap=True))
        return 0


VERBS = {"graph": Graph, "zoo": Zoo}
