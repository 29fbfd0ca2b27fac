"""`net.explain()`: one line per layer, prunable or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from metaprune.network import Network

_COLUMNS = "{:<44} {:<16} {:>7}  {}"


def explain_lines(network: Network) -> list[str]:
    """Header, one line per module that owns parameters, then unused parameters, operators without a rule, and notes."""
    lines: list[str] = [_COLUMNS.format("layer", "kind", "width", "output channels")]
    for path, module in network.model.named_modules():
        names = [f"{path}.{n}".lstrip(".") for n, _ in module.named_parameters(recurse=False)]
        used = [n for n in names if n in network.labelled.parameters]
        for name in used[:1]:
            dim = _output_dim(module) if "weight" in name.rpartition(".")[2] else -1
            width, status = _status(network, name, dim)
            lines.append(_COLUMNS.format(path or name, type(module).__name__, width, status))
        unused = [n for n in names if n in network.tensors and n not in used]
        if unused and not used:
            lines.append(
                _COLUMNS.format(
                    path or "(root)", type(module).__name__, "-", f"not used by the traced forward: {unused[0]}"
                )
            )
    prunable = network.space
    lines.append(
        f"{len(prunable)} channel groups, {int(prunable.widths.sum()) if len(prunable) else 0} channels; "
        f"{len(prunable.stuck)} groups of a single channel stay; {prunable.over_merged} rows merged more than needed"
    )
    lines += [
        f"no rule for operator {u.op} (node {u.node}, module {u.module or '(root)'}): what enters it is locked"
        for u in network.uncovered
    ]
    lines += [f"note: {n}" for n in network.notes]
    return lines


def _output_dim(module: nn.Module) -> int:
    """Dimension of a layer's first weight that its outputs are along."""
    return int(isinstance(module, (nn.modules.conv._ConvTransposeNd, nn.Embedding)))


def _status(network: Network, name: str, dim: int) -> tuple[int, str]:
    tensor = network.tensors[name]
    if tensor.dim() == 0:
        return 1, "a scalar: never changes"
    dim = min(dim, tensor.dim() - 1) % tensor.dim()
    width = tensor.shape[dim]
    groups = [g for g in network.space if any(m.parameter == name and m.dim == dim for m in g.members)]
    locked = next((x for x in network.space.locked if x.parameter == name and x.dim == dim), None)
    parts = [f"{g.name} ({g.width})" for g in groups]
    if not groups:
        reason = locked.reason if locked else "no index can be dropped by itself"
        return width, f"not prunable: {reason}"
    crossed = _crossed(network, name, dim)
    text = f"group {parts[0]}" if len(parts) == 1 else "groups " + (" x " if crossed else ", ").join(parts)
    if locked is not None:
        text += f"; {locked.locked} of {width} locked: {locked.reason}"
    elif all(g.width == 1 for g in groups):
        return width, f"not prunable: {text} has a single channel"
    return width, f"prunable, {text}"


def _crossed(network: Network, name: str, dim: int) -> bool:
    """Whether groups meet in one index (heads x head dimension), rather than follow one another."""
    label = network.labelled.parameters[name][dim]
    final = None if label is None else network.labelled.atoms.final(label)
    return final is not None and bool(((final >= 0).sum(axis=1) > 1).any())
