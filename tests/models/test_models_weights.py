"""Loading weights is all or nothing, without pickles, and says what does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import metaprune
from metaprune.core import imports as optional
from metaprune.core.errors import ConfigError, MissingDependencyError, WeightsError
from metaprune.models import create, default_input_shape, load_weights


def net(outputs=3):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs))


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrap", ["plain", "module", "state_dict", "model"])
def test_formats_and_wrappers(tmp_path, suffix, wrap):
    source, target = net(), net()
    state = source.state_dict()
    if wrap == "module":
        state = {"module." + k: v for k, v in state.items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        if wrap in ("state_dict", "model"):
            pytest.skip("safetensors files do not nest")
        save_file(state, file)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap in ("state_dict", "model") else state, file)
    assert load_weights(target, file) is target
    assert same(source.state_dict(), target.state_dict())


def test_every_kind_of_mismatch_is_listed_and_nothing_is_loaded(tmp_path):
    state = net(outputs=7).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["0.bias"]
    save_file(state, tmp_path / "w.safetensors")
    model = net()
    before = snapshot(model)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "missing (1): 0.bias" in text
    assert "unexpected (1): extra.weight" in text
    assert "other shape (2): 2.weight (7, 5) in the file, (3, 5) in the model" in text
    assert same(before, model.state_dict())


def test_long_lists_are_cut(tmp_path):
    save_file({f"layer{i}.weight": torch.zeros(1) for i in range(30)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected \(30\): .* and 22 more"):
        load_weights(net(), tmp_path / "w.safetensors")


def test_not_strict_takes_what_fits_but_no_other_shape(tmp_path):
    state = net().state_dict()
    del state["0.bias"]
    save_file(state, tmp_path / "part.safetensors")
    model = load_weights(net(), tmp_path / "part.safetensors", strict=False)
    assert torch.equal(model[0].weight, state["0.weight"])
    save_file(net(outputs=7).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="other shape"):
        load_weights(model, tmp_path / "other.safetensors", strict=False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("angles", torch.ones(2), persistent=False)


@pytest.mark.parametrize("name", ["table.weight", "head.weight"])
def test_tied_tensors_once_and_buffers_of_no_state_dict_are_no_error(name, tmp_path):
    save_file({name: torch.full((3, 2), 5.0), "angles": torch.ones(2)}, tmp_path / "w.safetensors")
    assert (load_weights(Tied(), tmp_path / "w.safetensors").head.weight == 5).all()
    save_file({"angles": torch.ones(2)}, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        load_weights(Tied(), tmp_path / "none.safetensors")


def test_a_missing_batch_counter_is_no_error(tmp_path):
    state = {k: v for k, v in net().state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_weights(net(), tmp_path / "w.safetensors").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("w.txt", b"x", "suffix"),
        ("w.safetensors", b"garbage", "not a readable safetensors"),
        ("w.pt", b"garbage", "weights_only"),
        ("w.pth", Evil(), "weights_only"),
        ("w.pt", {"a": 1}, "not tensors"),
        ("w.pt", [1, 2], "no state dict"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=message):
        load_weights(net(), file)


def test_create_with_weights(tmp_path):
    source = create("zoo:lenet")
    save_file(source.state_dict(), tmp_path / "lenet.safetensors")
    loaded = create("zoo:lenet", weights=tmp_path / "lenet.safetensors")
    assert same(source.state_dict(), loaded.state_dict())
    with pytest.raises(ConfigError, match="ships no weights"):
        create("zoo:lenet", weights="pretrained")


@pytest.mark.parametrize(("spec", "extra"), [("timm:resnet18", "timm"), ("hf:x", "hf"), ("torchvision:resnet18", "")])
def test_missing_packages_name_what_to_install(monkeypatch, spec, extra):
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*" + extra):
        create(spec)


def test_unknown_timm_name():
    try:
        with pytest.raises(ConfigError, match="resnet"):
            create("timm:resnet1888")
        with pytest.raises(ConfigError, match="resnet"):
            create("torchvision:resnet1888")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_hf_folder_keeps_its_head(tmp_path):
    try:
        transformers = optional.import_optional("transformers", "hf")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    model = create(f"hf:{tmp_path}")
    assert default_input_shape(f"hf:{tmp_path}", model) == (3, 16, 16)
    assert model.eval()(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 4)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        create(f"hf:{tmp_path / 'nothing'}")


@pytest.fixture
def timm_folder(tmp_path):
    """A folder as timm's own `push_to_hf_hub` fills it."""
    try:
        timm = optional.import_optional("timm", "timm")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    model = timm.create_model("test_byobnet", num_classes=7)
    from timm.models import save_for_hf

    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    return tmp_path / "saved", model


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_timm_folder_brings_its_weights(timm_folder, prefix):
    folder, model = timm_folder
    spec = f"timm:{prefix}{folder}"
    again = create(spec)
    assert same(model.state_dict(), again.state_dict())
    assert default_input_shape(spec, again) == model.default_cfg["input_size"]
    other_head = create(spec, num_classes=3)
    assert other_head.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert same(model.stem.state_dict(), other_head.stem.state_dict())


def test_timm_folder_takes_other_weights(timm_folder, tmp_path):
    folder, model = timm_folder
    changed = {n: t + 1 if t.is_floating_point() else t for n, t in model.state_dict().items()}
    save_file(changed, tmp_path / "changed.safetensors")
    assert same(create(f"timm:{folder}", weights=tmp_path / "changed.safetensors").state_dict(), changed)


def test_timm_folder_prunes_saves_and_loads(timm_folder, tmp_path):
    folder, _ = timm_folder
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    result = metaprune.prune(create(f"timm:{folder}").eval(), x, budget="macs=50%")
    result.save(tmp_path / "small", spec=f"timm:{folder}")
    assert torch.equal(metaprune.load(tmp_path / "small")(x), result.model.eval()(x))


@pytest.mark.parametrize("spec", ["timm:{0}/nothing", "timm:local-dir:{0}", "hf:{0}"])
def test_folders_that_hold_no_model(tmp_path, spec):
    try:
        with pytest.raises(ConfigError, match=r"cannot be loaded.*config\.json and model\.safetensors"):
            create(spec.format(tmp_path))
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("spec", ["timm:hf-hub:owner/net", "timm:owner/net", "hf:owner/net"])
def test_hub_names_while_offline(monkeypatch, spec):
    """The Hub's own client in its offline mode (without it, it tries again for 20 seconds and raises the same)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    try:
        with pytest.raises(ConfigError, match=r"cannot be loaded.*while online"):
            create(spec)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_timm_options_and_shape():
    try:
        model = create("timm:resnet18", num_classes=6, in_channels=1)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 6)
    assert default_input_shape("timm:resnet18", model)[1:] == (224, 224)


def test_new_head_loads_all_but_the_classifier(tmp_path):
    source, target = net(3), net(7)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    before = snapshot(target)
    with pytest.raises(WeightsError, match="other shape"):
        load_weights(target, tmp_path / "w.safetensors")
    assert same(before, snapshot(target))
    load_weights(target, tmp_path / "w.safetensors", new_head=True)
    after = target.state_dict()
    assert torch.equal(after["0.weight"], source[0].weight)
    assert torch.equal(after["2.weight"], before["2.weight"])


def test_new_head_hides_no_other_difference(tmp_path):
    save_file(
        nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)).state_dict(), tmp_path / "w.safetensors"
    )
    with pytest.raises(WeightsError, match="other shape"):
        load_weights(net(7), tmp_path / "w.safetensors", new_head=True)
