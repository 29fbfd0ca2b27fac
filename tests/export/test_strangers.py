"""An archive from a stranger: no code, no import, no file, no network; checks are on what is used."""

import json
import sys

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import DamagedFileError, DataError, MetapruneError, NotAvailableError, WriteError
from metaprune.core.imports import import_optional
from metaprune.export import archive as archive_module
from metaprune.export.archive import load, save
from metaprune.export.inspect import archive_facts
from metaprune.export.operators import is_allowed, operator_of
from metaprune.surgery.graph_form import DROPOUT_MODULES
from metaprune.testing import random_plan

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
SEALS = ("content_digest", "tensors_digest")


def small(*more):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *more, nn.Linear(8, 3)).eval()


def saved(folder, model=None, form="graph", **how):
    network = mp.trace(model or small(), X)
    pruned = mp.cut(network, random_plan(network.space, 0.5, 0), form=form)
    save(pruned, folder, **how)
    return pruned


def tamper(folder, edit):
    path = folder / "network.json"
    data = {k: v for k, v in json.loads(path.read_text()).items() if k not in SEALS}
    edit(data)
    path.write_text(json.dumps(data))


def call(data):
    return next(n for n in data["graph"]["nodes"] if n["op"] == "call_function")


def insert(target, args, kwargs=None):
    def edit(data):
        node = {"op": "call_function", "name": "ff", "target": target, "args": args, "kwargs": {"dict": kwargs or {}}}
        data["graph"]["nodes"].insert(1, node)

    return edit


CODE = "a=__import__('pathlib').Path({!r}).touch(), b"


@pytest.mark.parametrize("where", ["keyword", "node name", "placeholder", "dict in a value", "module", "output"])
def test_no_name_in_a_graph_is_code(tmp_path, where):
    saved(tmp_path / "net")
    mark = tmp_path / "ran"
    code = CODE.format(str(mark))

    def edit(data):
        nodes = data["graph"]["nodes"]
        if where == "keyword":
            call(data)["kwargs"]["dict"][code] = 1
        elif where == "node name":
            nodes[0]["name"] = code
        elif where == "placeholder":
            next(n for n in nodes if n["op"] == "placeholder")["target"] = code
        elif where == "dict in a value":
            call(data)["args"].append({"dict": {code: 1}})
        elif where == "module":
            data["graph"]["modules"][code] = {"kind": "Dropout", "p": 0.1}
        else:
            nodes[-1]["target"] = code

    tamper(tmp_path / "net", edit)
    with pytest.raises(DataError, match="save the network again"):
        load(tmp_path / "net")(X)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target, args, kwargs",
    [
        ("aten::from_file.default", ["MARK", True, 16], {"dtype": {"dtype": "uint8"}}),
        ("aten::manual_seed.default", [3], None),
        ("aten::_print.default", ["text"], None),
        ("aten::__class__.__base__", [], None),
        ("aten::relu.__class__", [{"node": "input"}], None),
        ("aten::relu", [{"node": "input"}], None),
        ("aten::set_.source_Tensor", [{"node": "input"}, {"node": "input"}], None),
        ("aten::resize_.default", [{"node": "input"}, [100]], None),
        ("aten::relu.out", [{"node": "input"}], {"out": {"node": "input"}}),
        ("aten::full.default", [[10**12], 0], None),
        ("aten::arange.default", [10**13], None),
        ("builtins.getattr", [{"node": "input"}, "__class__"], None),
        ("operator.pow", [9, 10**9], None),
        ("operator.mul", [{"node": "input"}, "text"], None),
    ],
)
def test_operators_are_those_of_the_list_with_fitting_arguments(tmp_path, target, args, kwargs):
    saved(tmp_path / "net")
    mark, state = tmp_path / "mark", torch.get_rng_state()
    args = [str(mark) if a == "MARK" else a for a in args]
    tamper(tmp_path / "net", insert(target, args, kwargs))
    with pytest.raises(DataError):
        load(tmp_path / "net")(X)
    assert not mark.exists() and torch.equal(state, torch.get_rng_state())


def test_the_list_has_no_operator_with_side_effects():
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name.removeprefix("aten::")
        if (
            not schema.name.startswith("aten::")
            or operator_of(f"{schema.name}.{schema.overload_name or 'default'}") is None
        ):
            continue
        kinds = {str(a.real_type) for a in schema.arguments}
        assert not kinds & {"Stream", "Storage", "Any", "Optional[Stream]"}, schema
        assert name not in {
            "from_file",
            "manual_seed",
            "seed",
            "_print",
            "save",
            "warn",
            "set_",
            "resize_",
            "record_stream",
        }
        assert not any(a.is_out for a in schema.arguments), schema
    assert is_allowed(torch.ops.aten.relu.default) and is_allowed(torch.ops.aten.to.dtype_layout)


@pytest.mark.parametrize("kind", ["spec", "tree"])
def test_no_module_is_imported_for_a_tree(tmp_path, monkeypatch, kind):
    saved(tmp_path / "net")
    (tmp_path / "evil_mod.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nf = int\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    context = {"default_factory_module": "evil_mod", "default_factory_name": "f", "dict_context": ["a"]}
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = json.dumps([1, {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}])
    tree = {"class": "evil_mod.Out", "fields": ["a"], "unset": None, "items": [None]}
    description = {"kind": "TreeOutput", **({"spec": spec} if kind == "spec" else {"tree": tree})}
    tamper(tmp_path / "net", lambda data: data["graph"]["modules"].update(t=description))
    try:
        load(tmp_path / "net")
    except DataError:
        assert kind == "spec"
    assert "evil_mod" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "spec, options",
    [
        ("hf:owner/name", {}),
        ("hf:owner/name", {"weights_only": False, "use_safetensors": False}),
        ("hf:owner/name", {"attn_implementation": "owner/kernel"}),
        ("timm:hf-hub:owner/name", {}),
        ("timm:owner/name", {}),
        ("timm:./folder", {}),
        ("timm:resnet10t", {"cache_dir": "x"}),
        ("timm:resnet10t", {"pretrained_cfg": {"file": "x"}}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:../x", {}),
        ("zoo:mlp", {"num_classes": 10**12}),
        ("zoo:mlp", {"num_classes": "../x"}),
        ("python:os:getcwd", {}),
        ("zoo", {}),
    ],
)
def test_a_module_form_is_built_from_plain_names_and_listed_options(tmp_path, monkeypatch, spec, options):
    model = mp.models.create("zoo:mlp")
    network = mp.trace(model.eval(), torch.zeros(2, *model.input_shape))
    save(mp.cut(network, random_plan(network.space, 0.5, 0), form="module"), tmp_path / "net", spec="zoo:mlp")
    tamper(tmp_path / "net", lambda data: data.update(spec=spec, options=options))

    def connect(*_):
        raise AssertionError("a connection")

    monkeypatch.setattr("socket.socket.connect", connect)
    with pytest.raises((DataError, NotAvailableError), match="factory"):
        load(tmp_path / "net")


def test_a_folder_of_the_models_name_is_not_opened(tmp_path, monkeypatch):
    import_optional("timm", "timm")
    model = mp.models.create("timm:resnet10t", num_classes=3).eval()
    network = mp.trace(model, torch.zeros(2, 3, 32, 32))
    pruned = mp.cut(network, random_plan(network.space, 0.5, 0), form="module")
    save(pruned, tmp_path / "net", spec="timm:resnet10t", options={"num_classes": 3})
    (tmp_path / "resnet10t").mkdir()
    (tmp_path / "resnet10t" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(load(tmp_path / "net")(x), pruned.model(x), atol=1e-6)


def bert():
    transformers = import_optional("transformers", "hf")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=20, num_labels=3, **sizes)
    ).eval()


def saved_bert(folder):
    tokens = {"input_ids": torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))}
    network = mp.trace(bert(), None, tokens)
    pruned = mp.cut(network, random_plan(network.space, 0.5, 0), form="module")
    save(pruned, folder, spec="hf:owner/name")
    return pruned, tokens


def test_a_transformers_model_is_built_from_the_config_in_the_archive(tmp_path, monkeypatch):
    pruned, tokens = saved_bert(tmp_path / "net")
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    again = load(tmp_path / "net")
    assert type(again) is type(pruned.model)
    assert torch.equal(again(**tokens).logits, pruned.model(**tokens).logits)


@pytest.mark.parametrize(
    "change",
    [
        {"class": "AutoModel"},
        {"class": "BertTokenizer"},
        {"class": "../x"},
        {"attention": "owner/kernel"},
        {"model_type": "nothing"},
        {"config": {"auto_map": {"AutoModel": "owner/name--x.Y"}}},
        {"config": {"quantization_config": {"x": 1}}},
        {"config": {"hidden_act": "owner/name"}},
        {"config": {"unknown": 1}},
        {"config": {"vocab_size": 10**12}},
        {"config": {"_name_or_path": "owner/name"}},
    ],
)
def test_a_config_in_an_archive_names_nothing_to_fetch(tmp_path, change):
    saved_bert(tmp_path / "net")

    def edit(data):
        for key, value in change.items():
            held = data["transformers"]
            held[key] = {**held["config"], **value} if key == "config" else value

    tamper(tmp_path / "net", edit)
    with pytest.raises(DataError, match=r"network\.json"):
        load(tmp_path / "net")


@pytest.mark.parametrize(
    "path, values", [("", {"forward": 3}), ("", {"training": 0}), ("0", {"__class__": 3}), ("x", {})]
)
def test_only_sizes_are_set_as_attributes(tmp_path, path, values):
    saved(tmp_path / "net", form="module")
    tamper(tmp_path / "net", lambda data: data.update(attributes={path: values}))
    with pytest.raises(DataError, match=r"attributes|damaged"):
        load(tmp_path / "net", factory=small)


@pytest.mark.parametrize("key", ["__class__.hidden_size", "_x", "a.__init__"])
def test_a_config_change_walks_no_attributes(tmp_path, key):
    saved_bert(tmp_path / "net")
    tamper(tmp_path / "net", lambda data: data["config"].update(changes={key: 3}))
    with pytest.raises(DataError, match="config"):
        load(tmp_path / "net")


@pytest.mark.parametrize("file", ["model.safetensors", "network.json"])
def test_flipped_bits_and_mixed_saves_are_seen(tmp_path, file):
    saved(tmp_path / "net")
    saved(tmp_path / "other", nn.Sequential(*[nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)]).eval())
    whole = (tmp_path / "net" / file).read_bytes()
    if file == "model.safetensors":
        (tmp_path / "net" / file).write_bytes((tmp_path / "other" / file).read_bytes())
        with pytest.raises(DamagedFileError, match=r"model\.safetensors.*save the network again"):
            load(tmp_path / "net")
        (tmp_path / "net" / file).write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
    else:
        (tmp_path / "net" / file).write_text(whole.decode().replace('"why": "', '"why": "x'))
    with pytest.raises(DamagedFileError, match=f"{file}.*save the network again"):
        load(tmp_path / "net")
    assert "differs" in archive_facts(tmp_path / "net")["digests"]


def test_an_archive_of_an_early_version_loads(tmp_path):
    pruned = saved(tmp_path / "net")
    tamper(tmp_path / "net", lambda data: data.pop("transformers"))
    assert torch.equal(load(tmp_path / "net")(X), pruned.model.eval()(X))
    assert archive_facts(tmp_path / "net")["digests"].startswith("none")


@pytest.mark.parametrize("part", ["write_tensors", "write_sealed"])
def test_a_full_disk_leaves_the_old_archive(tmp_path, monkeypatch, part):
    pruned = saved(tmp_path / "net")
    expected = pruned.model.eval()(X)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(archive_module, part, full)
        with pytest.raises(WriteError, match="what was there is whole"):
            save(pruned, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(X), expected)
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["model.safetensors", "network.json", "plan.json"]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_between_the_renames_leaves_the_new_archive(tmp_path, monkeypatch, moved):
    saved(tmp_path / "net")
    pruned = saved(tmp_path / "new", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    (tmp_path / "new").rename(tmp_path / "net" / ".complete")
    for path in sorted((tmp_path / "net" / ".complete").iterdir())[:moved]:
        path.replace(tmp_path / "net" / path.name)
    expected = pruned.model.eval()(X)
    assert torch.equal(load(tmp_path / "net")(X), expected)
    save(pruned, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(X), expected) and not (tmp_path / "net" / ".complete").exists()


@pytest.mark.parametrize("kind", DROPOUT_MODULES)
def test_every_kind_of_dropout_is_saved(tmp_path, kind):
    shape = {"Dropout1d": (2, 4, 6), "Dropout2d": (2, 4, 6, 6), "Dropout3d": (2, 4, 3, 3, 3)}.get(kind, (2, 4, 6))
    conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    model = nn.Sequential(conv(4, 8, 1), getattr(nn, kind)(0.4), conv(8, 3, 1))
    x = torch.randn(*shape)
    network = mp.trace(model, x)
    pruned = mp.cut(network, random_plan(network.space, 0.5, 0), form="graph")
    save(pruned, tmp_path)
    again = load(tmp_path)
    assert torch.allclose(again(x), pruned.model.eval()(x))
    held = [m for m in again.modules() if type(m) in DROPOUT_MODULES.values()]
    assert [(type(m).__name__, m.p) for m in held] == [(kind, 0.4)]
    assert not torch.equal(again.train()(x), again(x))


class Foreign(nn.Module):
    """Calls an operator that no archive holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).relu()) + torch.linalg.svdvals(x)[:, None][:, :1].sum()


@pytest.mark.filterwarnings("ignore::metaprune.UncoveredOpWarning")
def test_a_module_form_without_a_graph_is_said_when_it_is_saved(tmp_path):
    with pytest.warns(UserWarning, match="own class only.*svd"):
        saved(tmp_path / "net", Foreign().eval(), form="module")
    with pytest.raises(NotAvailableError, match=r"holds no graph.*svd"):
        load(tmp_path / "net", form="graph")


def test_a_spec_that_makes_another_model_is_said_when_it_is_saved(tmp_path):
    with pytest.warns(UserWarning, match="makes other tensors"):
        saved(tmp_path / "net", form="module", spec="zoo:mlp")
    assert load(tmp_path / "net", form="graph")(X).shape == (2, 3)


@pytest.mark.filterwarnings("ignore::metaprune.UncoveredOpWarning")
def test_what_cannot_be_saved_is_known_before_the_run():
    network = mp.trace(Foreign().eval(), X)
    with pytest.raises(NotAvailableError, match="svd"):
        archive_module.require_savable(network, "graph")
    archive_module.require_savable(network, "auto")  # its class runs at any width


def test_inspection_builds_nothing(tmp_path, monkeypatch):
    saved(tmp_path / "net")
    tamper(tmp_path / "net", insert("aten::from_file.default", ["x", True, 16]))
    monkeypatch.setattr(archive_module, "graph_from_json", None)
    facts = archive_facts(tmp_path / "net")
    assert "NOT of metaprune: aten::from_file.default" in facts["operators"] and facts["form"].startswith("graph")
    with pytest.raises(MetapruneError):
        archive_facts(tmp_path / "nowhere")
