"""What a `Result` says of itself, and what it measures."""

import json

import pytest
import torch

import metaprune as mp
from metaprune.core.errors import DataError
from metaprune.testing.method_suite import small_data, small_network

EXAMPLE = torch.zeros(2, 1, 28, 28)


@pytest.fixture(scope="module")
def result():
    data = small_data()
    return mp.prune(small_network("cnn"), EXAMPLE, budget="macs=50%", data=data, method="magnitude", progress=False)


def test_it_says_in_a_few_lines_what_is_left(result):
    lines = repr(result).splitlines()
    assert len(lines) <= 8 and lines[0] == "Result(" and lines[-1] == ")"
    assert "of MACs" in lines[1] and "proved equal" in lines[1]
    assert any(line.startswith("  MACs: ") and " -> " in line for line in lines)
    assert "<table>" in result._repr_html_() and "<td>MACs</td>" in result._repr_html_()


def test_it_measures_the_model_as_it_is_now(result):
    data = small_data()
    before = result.measure(data)
    recorded = result.record["quality"]
    assert recorded["split"] == "test"
    assert before["accuracy"] == recorded["cut"]["accuracy"] and before["samples"] == len(data.test)
    head = [m for m in result.model.modules() if isinstance(m, torch.nn.Linear)][-1]
    kept = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.zero_()
        assert result.measure(data)["loss"] != before["loss"]
        head.weight.copy_(kept)
    assert result.measure(data) == before


def test_outputs_are_compared_with_those_of_the_original(result):
    inputs = torch.utils.data.TensorDataset(torch.randn(16, 1, 28, 28))
    found = result.measure((inputs, inputs), objective="match_outputs")
    with torch.no_grad():
        x = inputs.tensors[0]
        wanted, got = result.pruned.network.model.eval()(x), result.model(x)
    assert found["output_error"] == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-4)
    with pytest.raises(DataError, match="objective"):
        result.measure((inputs, inputs))
    large = torch.utils.data.TensorDataset(torch.randn(4, 3, 28, 28), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="does not run on samples"):
        result.measure((large, large))


def test_its_report_is_a_page(result, tmp_path):
    page = result.report(tmp_path / "new" / "report.html")
    assert "MACs" in page.read_text() and page.name == "report.html"


def test_figures_of_other_weights_are_marked(result, tmp_path):
    """In what is saved and reported after training of one's own, and only there."""

    def warned(folder):
        result.save(tmp_path / folder)
        return json.loads((tmp_path / folder / "record.json").read_text())["warnings"]

    assert warned("before") == result.record["warnings"]
    head = [m for m in result.model.modules() if isinstance(m, torch.nn.Linear)][-1]
    kept = head.weight.detach().clone()
    with torch.no_grad():
        head.weight[0, 0] += 1e-3
        assert [text for text in warned("after") if "trained on after" in text]
        assert "trained on after" in result.report(tmp_path / "after.html").read_text()
        head.weight.copy_(kept)
    assert warned("again") == result.record["warnings"]
    assert "trained on after" not in result.report(tmp_path / "again.html").read_text()
