"""The report of a run: what it holds, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from run_folders import metrics, records, write_run
from sweep_rows import row
from torch import nn

from pysoftq.analysis.page import run_page, sweep_page, write_page
from pysoftq.analysis.page.charts import Axis, Chart, Point, Series
from pysoftq.analysis.page.run import lead, refinement_text
from pysoftq.analysis.phase import study_phase
from pysoftq.artifact import inspect_compressed, save_compressed
from pysoftq.cli.phase import drawings
from pysoftq.cli.report import report
from pysoftq.compressor.target import Target
from pysoftq.coupling.report import CompressionReport, LayerReport, TensorReport
from pysoftq.run.config import make_config
from pysoftq.run.front import Front, FrontRung
from pysoftq.run.networks import NetworkRow
from pysoftq.run.reached import Reached
from pysoftq.run.summary import Summary, TrainingSpeed
from pysoftq.sweep.grid import make_spec

LAYERS = ("layer3.0.conv2.weight", "linear.weight")
HOSTILE = "<script>alert('x')</script>\"&"


def summary(names: tuple[str, ...] = LAYERS) -> Summary:
    networks = [NetworkRow("pretrained", 0.99, None, None, None, 80_000)]
    found = {"soft, refined": 3.5, "HEQ-4": 4.0, "HEQ-3": 3.0}
    networks += [
        NetworkRow(name, 0.9 + bits / 100, bits, 4.0, bits - 0.5, 10_000)
        for name, bits in found.items()
    ]
    layers = tuple(
        LayerReport(name, 10 ** (3 - n), 0.1, 0.05, 1e-3, 12, 3.58, 9 + n, 3.17, 2.4)
        for n, name in enumerate(names)
    )
    tensors = (
        *(TensorReport(name, (10, 10), "coupled", "h = 0.3, w = 0.5") for name in names),
        TensorReport("bn.weight", (10,), "excluded", "normalization"),
        TensorReport("bn.bias", (10,), "excluded", "normalization"),
        TensorReport("bn.running_mean", (10,), "excluded", "buffer"),
    )
    report = CompressionReport(layers, tensors)
    speed = TrainingSpeed(10.0, 12_345.6, 0.021)
    excluded = {"bn.weight": "normalization"}
    return Summary(tuple(networks), report, excluded, speed, bytes_float32=80_000)


def compressed(path: Path, names: tuple[str, ...]) -> Path:
    """A compressed file with weights of these names, of 12 and 8 values."""
    model = nn.Module()
    for number, name in enumerate(names):
        *modules, last = name.split(".")
        inner = model
        for part in modules:
            if part not in dict(inner.named_children()):
                inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        weight = torch.arange(10.0 ** (3 - number)).reshape(10, -1) % (12 - 4 * number)
        inner.register_parameter(last, nn.Parameter(weight))
    metadata = {"input": {"shape": [1, 8, 8], "dtype": "float32"}, "mean": [0.3], "std": [0.4]}
    save_compressed(model, path, metadata=metadata)
    return path


def full_run(folder: Path, names: tuple[str, ...] = LAYERS) -> Path:
    """A run folder with all that a report reads."""
    rows: list[dict[str, Any]] = metrics()
    for line in rows:
        line["clusters"] = dict(zip(names, line["clusters"].values(), strict=True))
    write_run(folder, {**records(), "layer": names[0], "trajectory_layer": names[1]}, rows)
    (folder / "report.json").write_text(json.dumps(summary(names).to_dict()))
    compressed(folder / "compressed.safetensors", names)
    config = make_config({"dataset": "digits", "h": 0.3, "exclude": ("a*",)})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = full_run(tmp_path_factory.mktemp("run"))
    result = CliRunner().invoke(report, [str(folder)])
    assert result.exit_code == 0, result.output
    assert "report.html (0." in result.output
    return folder / "report.html"


def test_the_page_holds_the_numbers(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for expected in ("93.50 %", "12,346", "2.1 % of it", "0.125", *LAYERS, "bn.weight"):
        assert expected in text
    assert "All 5 tensors" in text
    for rule in ("h = 0.3, w = 0.5", "normalization", "buffer"):
        assert (
            len(re.findall(f'<td class="words"[^>]*>{rule}</td>', text)) >= 2
        )  # among the rules, and beside each tensor
    assert "pysoftq compress --h 0.3 --exclude &#39;a*&#39;" in text
    assert text.count("<img") == 6
    assert page.stat().st_size < 5e6


def cells(text: str, table: str) -> list[list[str]]:
    """The rows of a table of a page, its foot included."""
    (body,) = re.findall(rf"<caption>{table}</caption>.*?</table>", text, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)[1:]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_layers_agree_with_the_file(page: Path) -> None:
    info = inspect_compressed(page.parent / "compressed.safetensors")
    *rows, foot = cells(page.read_text(encoding="utf-8"), "Layers")
    sizes = [[row[0], *row[-4:]] for row in rows]
    assert sizes == [
        [
            *(layer.name, f"{layer.K}", f"{layer.bits:.3f}"),
            *(f"{layer.entropy_bits:.3f}", f"{layer.bytes_on_disk:,}"),
        ]
        for layer in info.layers
    ]
    assert [row[5] for row in rows] == ["12", "12"]  # before refinement
    assert foot[-3] == f"{info.mean_bits:.3f}"
    text = page.read_text(encoding="utf-8")
    assert f"ratio {info.ratio:.3f}: {info.bytes_on_disk:,} of {info.bytes_float32:,}" in text
    assert "The file stores all 100 weights of the layer in 8 clusters." in text


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest and is seen in other tests."""
    monkeypatch.setattr("pysoftq.analysis.page.run._pictures", lambda *_: [])


@pytest.mark.usefixtures("no_pictures")
def test_files_of_a_front_can_be_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "a run #1"
    folder.mkdir()
    full_run(folder)
    made = [
        FrontRung(f"front/{size}-bytes.safetensors", size, size, size - 9, bits, merit, 0.93)
        for size, bits, merit in ((9000, 4.0, 0.94), (8000, 3.0, 0.95), (7000, 2.0, 0.91))
    ]
    front = Front("classification", (9000, 8000, 7000), 0.96, tuple(made), 0.95, 1)
    front.write(folder / "front.json")
    text = run_page(folder)
    rows = cells(text, "Compressed networks")
    assert [row[1] for row in rows] == ["8,991", "7,991", "6,991"]
    assert (
        rows[0][0].replace("\N{NO-BREAK SPACE}", " ")
        == '<a href="front/9000-bytes.safetensors" download>at most 9,000 bytes</a>'
    )
    assert [row[-1] for row in rows] == ["dominated", "on it", "on it"]
    assert "Outside of the range of the chart: " not in text
    assert '<a href="#front">Front</a>' in text
    elsewhere = run_page(folder, tmp_path)
    assert 'href="a%20run%20%231/front/9000-bytes.safetensors"' in elsewhere


def test_weights_that_are_not_coupled_are_listed(tmp_path: Path) -> None:
    folder = full_run(tmp_path)
    compressed(folder / "compressed.safetensors", (*LAYERS, "head.weight"))
    rows = cells(run_page(folder), "Layers")
    assert rows[2][:6] == ["head.weight", "10", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"refinement": "count", "n_min": 1},
            "count, which joins each cluster of at most 1 weight to the nearest",
        ),
        (
            {"refinement": "count", "n_min": 7},
            "count, which joins each cluster of at most 7 weights to the nearest",
        ),
        (
            {"recipe": "best"},
            "levels, which merges neighbours where this saves log2 K",
        ),
        ({"recipe": "best"}, "at rd_weight = 0.05, followed by 5 epochs of training with the"),
        ({"max_drop": 1.0}, "at the rd_weight that leads to the target, followed by training"),
        ({"refinement": "entropy", "rd_weight": 0.2}, "saves entropy at rd_weight = 0.2"),
    ],
)
def test_the_refinement_is_named(given: dict[str, Any], expected: str) -> None:
    assert expected in refinement_text(make_config({"dataset": "digits"}, given))


def test_the_lead_has_all_epochs_and_the_strength_of_the_target() -> None:
    given = {"dataset": "digits", "epochs": 7, "codebook_epochs": 3}
    without = lead(make_config({**given, "rd_weight": 0.1}), None)
    assert without.endswith("with h = 0.2 and w = 0.35 for 7 epochs, seed 0")
    target = Reached(Target(bits=2.0), (), 0, 1_000, 0.125, "points")
    assert lead(make_config({**given, "target_bits": 2.0}), target).endswith(
        "with h = 0.125 and w = 0.35 for 10 epochs, training to a target included, seed 0"
    )


def test_captions_name_the_refinement(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    config = make_config({"dataset": "digits"})
    assert f"Refinement is {refinement_text(config)}." in text
    assert f"with the clusters of refinement {config.refinement} (Fig. 1)" in text


@pytest.mark.usefixtures("no_pictures")
def test_warnings_are_the_first_thing(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (warning,) = summary().warnings
    assert "5.50 points lost" in warning.text
    assert text.index(warning.text) < text.index('class="cards"')
    assert f"{warning.advice[0].upper()}{warning.advice[1:]}." in text.replace("&#39;", "'")
    folder = full_run(tmp_path)
    content = json.loads((folder / "report.json").read_text())
    content["networks"][1]["accuracy"] = 0.98
    (folder / "report.json").write_text(json.dumps(content))
    assert "Warning" not in run_page(folder)


def test_the_page_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"'>)]+)", text)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


@pytest.mark.usefixtures("no_pictures")
def test_names_are_escaped(tmp_path: Path) -> None:
    text = run_page(full_run(tmp_path, (HOSTILE, "linear.weight")))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert text.count("<script") == 1


RUN_FILES = ("report.json", "config.yaml", "records.npz", "metrics.jsonl", "compressed.safetensors")


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_that_is_not_finished(page: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(page.parent, folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        run_page(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"networks": 3, "compression": {}}'])
def test_a_foreign_report(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report.json: not the report of a finished run"):
        Summary.read(path)


def test_a_report_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(summary().to_dict()))
    assert Summary.read(path) == summary()


def test_places_follow_the_ticks() -> None:
    points = [Point(x, 10.0**x, "") for x in range(4)]
    series = [Series("a", points)]
    chart = Chart("t", Axis("x", low=0, high=4), Axis("y", log=True, low=1, high=1e4), series)
    (drawn,) = chart.drawn
    x = np.linspace(chart.left, chart.right, 5)
    y = np.linspace(chart.bottom, chart.top, 5)
    np.testing.assert_allclose([point[:2] for point in drawn.points], np.array([x, y]).T[:4])
    ticks = {tick.label: tick.place for tick in chart.y_ticks}
    assert ticks["100"] == pytest.approx(y[2])
    assert {tick.label: tick.place for tick in chart.x_ticks}["3"] == pytest.approx(x[3])


def test_a_logarithmic_axis_of_less_than_a_decade_has_ticks() -> None:
    points = [Point(0.0, 64.0, ""), Point(1.0, 118.0, "")]
    chart = Chart("t", Axis("x"), Axis("y", log=True), [Series("a", points)])
    assert len(chart.y_ticks) >= 3


@pytest.mark.parametrize("log", [False, True])
def test_a_single_point_has_ticks(log: bool) -> None:
    chart = Chart("t", Axis("x"), Axis("y", log=log), [Series("a", [Point(3.0, 3.0, "")])])
    assert len(chart.y_ticks) >= 1
    assert chart.drawn[0].points[0][1] == (chart.top + chart.bottom) / 2


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with two points: (0.1, 0.5) beats HEQ-4, (0.3, 0.5) does not."""
    spec = make_spec({"h": [0.1, 0.3], "w": [0.5], "seeds": 2, "dataset": "digits", "epochs": 9})
    rows = [row(0.1, 0.5, 0, 1.0, 3.5), row(0.1, 0.5, 1, 2.0, 3.7), row(0.3, 0.5, 0, 9.0, 3.0)]
    text = sweep_page(study_phase(HOSTILE, rows), spec)
    return write_page(text, tmp_path_factory.mktemp("sweep") / "report.html")


def test_page_of_a_sweep(sweep_file: Path) -> None:
    text = sweep_file.read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "1 of 2 points" in text
    assert "1.50 ± 0.5" in text
    assert "pysoftq compress --h 0.1 --w 0.5 --rd-weight 0.05 --split-seed 0 --epochs 9" in text
    assert text.count("<img") == 3


def test_a_sweep_of_one_seed_has_no_map_of_its_variation() -> None:
    spec = make_spec({"h": [0.1, 0.3], "w": [0.5], "seeds": 1, "dataset": "digits"})
    study = study_phase("one", [row(0.1, 0.5, 0, 1.0, 3.5), row(0.3, 0.5, 0, 9.0, 3.0)])
    text = sweep_page(study, spec)
    assert text.count("<img") == 2
    assert "variation" not in text
    assert set(drawings(study)) == {"phase", "before-refinement"}


def test_command_for_a_sweep(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_phase("grid", [row(0.1, 0.5, 0, 1.0, 3.5)])
    monkeypatch.setattr("pysoftq.cli.report.read_study", lambda folder, storage: (study, []))
    folder = sweep_file.parent
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"h": 0.1, "w": 0.5, "dataset": "digits"}))
    result = CliRunner().invoke(report, [str(folder), "--out", str(folder / "out.html")])
    assert result.exit_code == 0, result.output
    assert "1 of 1 points" in (folder / "out.html").read_text(encoding="utf-8")
    out = folder / "nowhere" / "out.html"
    result = CliRunner().invoke(report, [str(folder), "--out", str(out)])
    assert "there is no folder" in str(result.exception)
    assert not out.parent.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next((path for path in found if path), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as driver:
        # The sandbox wants rights that containers do not give; the page is our own.
        yield driver.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["desktop", "phone"])
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page on a screen; nothing may be logged or requested."""
    scheme, width = request.param
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce"
    )
    tab, heard = context.new_page(), []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: heard.append(request.url[:80]))
    tab.goto(page.as_uri())
    yield tab
    assert [text for text in heard if not text.startswith("data:")] == [page.as_uri()]
    context.close()


def test_in_a_browser(opened: Any) -> None:
    # The page itself never scrolls sideways.
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tables = "[...document.querySelectorAll('.scroll')]"
    assert opened.evaluate(f"{tables}.every((e) => e.scrollWidth <= e.clientWidth)")
    assert opened.evaluate("[...document.images].every((image) => image.alt)")
    tip = opened.locator("#tip")
    assert tip.is_hidden()
    chart = opened.locator("svg[role=application]").first
    chart.scroll_into_view_if_needed()

    # The pointer finds a network, arrow keys the next one.
    chart.locator("circle:not(.cursor)").last.hover()
    assert tip.inner_text().startswith("HEQ-3\naccuracy 93.00 %")
    opened.mouse.move(0, 0)
    chart.focus()
    opened.keyboard.press("Home")
    assert tip.is_visible()
    first = tip.inner_text()
    opened.keyboard.press("ArrowDown")
    assert tip.inner_text() != first
    opened.keyboard.press("Escape")
    assert tip.is_hidden()

    # A heading sorts, first up and then down.
    names = opened.locator("table.sortable tbody td:first-child")
    assert names.all_inner_texts() == list(LAYERS)
    size = opened.locator("table.sortable th button").nth(1)
    size.press("Enter")
    assert names.all_inner_texts() == [*reversed(LAYERS)]
    size.press("Enter")
    assert names.all_inner_texts() == list(LAYERS)

    # The slider shows another moment.
    bars = opened.locator(".movie .bars")
    before = bars.get_attribute("d")
    opened.locator(".movie input").press("End")
    assert opened.locator(".movie output").inner_text() == "epoch 6"
    assert bars.get_attribute("d") != before

    # Everything that does something can be reached by the tabulator.
    reached = opened.evaluate(
        "[...document.querySelectorAll('a,button,input,summary,svg[role=application]')]"
        ".every((element) => element.tabIndex >= 0)"
    )
    assert reached


def test_points_of_a_sweep_tell_what_they_are(browser: Any, sweep_file: Path) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.goto(sweep_file.as_uri())
    cell = tab.locator("svg[role=application]").nth(1).locator("circle:not(.cursor)").first
    cell.hover()
    told = tab.locator("#tip").inner_text()
    assert told.startswith("h 0.1, w 0.5, 2 seeds (better than HEQ-4)\n1.50 ± 0.5 points lost")
    assert "pysoftq compress" in told
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert heard == []
    tab.close()


def test_dark_paper(browser: Any, page: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(page.as_uri())
        papers.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        tab.close()
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
