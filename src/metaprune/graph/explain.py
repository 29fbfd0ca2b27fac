"""`net.explain()`: one line per layer, prunable or why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from metaprune.graph.labelling import Labelled
from metaprune.values import Space

_NAMED = 6  # branches that are named
_COLUMNS = "{:<44} {:<16} {:>7}  {}"


def explain_lines(
    model: nn.Module, labelled: Labelled, space: Space, tensors: Mapping[str, Tensor], notes: Sequence[str]
) -> list[str]:
    """Header, one line per module that owns parameters, then unused parameters, operators without a rule, and notes."""
    lines: list[str] = [_COLUMNS.format("layer", "kind", "width", "output channels")]
    for path, module in model.named_modules():
        names = [f"{path}.{n}".lstrip(".") for n, _ in module.named_parameters(recurse=False)]
        used = [n for n in names if n in labelled.parameters]
        for name in used[:1]:
            dim = _output_dim(module) if "weight" in name.rpartition(".")[2] else -1
            width, status = _status(labelled, space, tensors[name], name, dim)
            status += " (used in train mode only)" if name in labelled.train_only else ""
            lines.append(_COLUMNS.format(path or name, type(module).__name__, width, status))
        unused = [n for n in names if n in tensors and n not in used]
        if unused and not used:
            lines.append(
                _COLUMNS.format(
                    path or "(root)", type(module).__name__, "-", f"not used by the traced forward: {unused[0]}"
                )
            )
    lines.append(
        f"{len(space)} channel groups, {int(space.widths.sum()) if len(space) else 0} channels; "
        f"{len(space.stuck)} groups of a single channel stay; {space.over_merged} rows merged more than needed"
    )
    if space.branches:
        names = ", ".join(b.name for b in space.branches[:_NAMED])
        more = f" and {len(space.branches) - _NAMED} more" if len(space.branches) > _NAMED else ""
        lines.append(f"{len(space.branches)} branches can be dropped whole (network.branches): {names}{more}")
    lines += [
        f"no rule for operator {u.op} (node {u.node}, module {u.module or '(root)'}): what enters it is locked"
        + (f", its {u.macs:,} MACs at the traced size are a constant" if u.macs else "")
        for u in labelled.uncovered
    ]
    held = dict.fromkeys(x.reason for x in space.locked if x.reason.startswith("graph output '"))
    if held:
        names = ", ".join(reason.removeprefix("graph output ") for reason in held)
        lines.append(f"outputs whose width is held: {names}; free_outputs=[NAME] frees those that nobody reads")
    lines += [f"note: {n}" for n in notes]
    return lines


def _output_dim(module: nn.Module) -> int:
    """Dimension of a layer's first weight that its outputs are along."""
    return int(isinstance(module, (nn.modules.conv._ConvTransposeNd, nn.Embedding)))


def _status(labelled: Labelled, space: Space, tensor: Tensor, name: str, dim: int) -> tuple[int, str]:
    if tensor.dim() == 0:
        return 1, "a scalar: never changes"
    dim = min(dim, tensor.dim() - 1) % tensor.dim()
    width = tensor.shape[dim]
    groups = [g for g in space if any(m.parameter == name and m.dim == dim for m in g.members)]
    locked = next((x for x in space.locked if x.parameter == name and x.dim == dim), None)
    parts = [f"{g.name} ({g.width})" for g in groups]
    if not groups:
        reason = locked.reason if locked else "no index can be dropped by itself"
        return width, f"not prunable: {reason}"
    crossed = _crossed(labelled, name, dim)
    text = f"group {parts[0]}" if len(parts) == 1 else "groups " + (" x " if crossed else ", ").join(parts)
    if locked is not None:
        text += f"; {locked.locked} of {width} locked: {locked.reason}"
    elif all(g.width == 1 for g in groups):
        return width, f"not prunable: {text} has a single channel"
    return width, f"prunable, {text}"


def _crossed(labelled: Labelled, name: str, dim: int) -> bool:
    """Whether groups meet in one index (heads x head dimension), rather than follow one another."""
    label = labelled.parameters[name][dim]
    final = None if label is None else labelled.atoms.final(label)
    return final is not None and bool(((final >= 0).sum(axis=1) > 1).any())
