"""Choose the smallest variant of every timm family and its input: writes `timm_families.json`, which is committed.

python benchmarks/coverage/pick.py

A family is a module of timm that registers models. Variants are counted on the meta device (no memory, no weights);
timm's own `test_*` toys do not count. Takes ten minutes, once for a version of timm.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from metaprune.core.imports import allow_torchvision_import

HERE = Path(__file__).parent
MOST_PARAMETERS = 60_000_000
SMALL_INPUT = 128

# families without a small variant: the family's own arguments make one (fewer layers or channels, the same code)
REDUCED: dict[str, dict] = {
    "beit": {"depth": 2},
    "deepseek_vit": {"depth": 2, "img_size": 168},
    "gemma4_vit": {"depth": 2, "img_size": 192},
    "mobilenetv5": {"channel_multiplier": 0.5},
    "naflexvit": {"depth": 2},
    "nasnet": {"stem_size": 32, "num_features": 1056},
    "qwen3_vit": {"depth": 2, "img_size": 192},
    "vgg": {"mlp_ratio": 0.25},
    "vision_transformer_sam": {"depth": 3},
}


def parameters_of(name: str) -> tuple[int, list[int]]:
    """(parameters, input size) of one variant."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
    return sum(p.numel() for p in model.parameters()), list(model.pretrained_cfg["input_size"])


def family(module: str) -> dict:
    """The smallest variant, or why there is none."""
    import timm

    found, failures = [], []
    for name in sorted(timm.list_models(module=module)):
        if name.startswith("test_"):
            continue
        try:
            count, size = parameters_of(name)
            found.append((count, size[-1], name, size))
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    if not found:
        return {"skip": f"no variant can be built ({failures[0] if failures else 'none registered'})"}
    count, _, name, size = min(found)
    chosen = {"model": name, "params": count, "input_size": size}
    if failures:
        chosen["not_counted"] = failures
    return chosen


def with_input(module: str, chosen: dict) -> dict:
    """Adds the arguments that reduce it, and the smallest of a few input sizes at which it runs as it is."""
    import timm

    if "model" not in chosen:
        return chosen
    options = REDUCED.get(module, {}) if chosen["params"] > MOST_PARAMETERS else {}
    model = timm.create_model(chosen["model"], **options).eval()
    if getattr(model, "num_classes", 1) == 0:  # features by default: a head makes it a task
        options = {**options, "num_classes": 1000}
        model = timm.create_model(chosen["model"], **options).eval()
    native = options.get("img_size", chosen["input_size"][-1])
    fixed = model.pretrained_cfg.get("fixed_input_size", False) or "img_size" in options
    chosen = {**chosen, "options": options, "built_params": sum(p.numel() for p in model.parameters())}
    for size in sorted({native} if fixed else {min(SMALL_INPUT, native), native}):
        try:
            with torch.no_grad():
                model(torch.randn(2, chosen["input_size"][0], size, size))
        except Exception as error:
            chosen["skip"] = f"does not run at {size} pixels ({type(error).__name__}: {str(error)[:200]})"
        else:
            chosen.pop("skip", None)
            return {**chosen, "size": size}
    return chosen


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    allow_torchvision_import()
    import timm

    families = {}
    for module in sorted(timm.list_modules()):
        if timm.list_models(module=module):
            families[module] = with_input(module, family(module))
            print(module, families[module], flush=True)
    report = {"timm": timm.__version__, "families": families}
    (HERE / "timm_families.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
