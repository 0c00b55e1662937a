"""Parts of the report, without a browser."""

import base64
import io
import math
import re
import warnings

import numpy as np
import pytest
from PIL import Image
from runs import table_of, write_run

from metakm.errors import UserError
from metakm.report.charts import (
    AccuracyPoint,
    Curve,
    accuracy_by_parameters,
    histogram,
    inline,
    learning_curves,
    line_style,
)
from metakm.report.gallery import data_uri
from metakm.report.modulated_kernels import LayerKernels
from metakm.report.sections import short_labels
from metakm.run.curve import CurvePoint, curve_csv, read_curve


def test_labels_say_only_what_tells_protocols_apart(tmp_path):
    def labels():
        return sorted(short_labels([cell.protocol for cell in table_of(tmp_path).cells]).values())

    write_run(tmp_path / "km")
    write_run(tmp_path / "anil", "anil")
    assert labels() == ["anil", "km"]
    write_run(tmp_path / "bf16", precision="bf16")
    assert labels() == ["anil", "km", "km (quick, precision bf16)"]
    write_run(tmp_path / "paper", preset="paper")
    assert labels()[-1] == "km (quick, precision bf16)"
    assert any(label.startswith("km (paper") for label in labels())


def test_change_of_kernels_by_hand():
    before = np.full((1, 1, 1, 4), 2.0)
    after = np.stack([before + np.array([1, -1, 1, -1]), before + 3])  # root mean squares of 1 and 3
    layer = LayerKernels("conv", before, before, before, before, after)
    assert layer.change == pytest.approx((1 / 2 + 3 / 2) / 2)
    assert layer.adapts
    assert not layer.modulated


def test_large_colour_pictures_are_packed_as_photographs():
    assert data_uri(np.zeros((1, 28, 28), np.uint8)).startswith("data:image/png;base64,")
    assert data_uri(np.zeros((3, 28, 28), np.uint8)).startswith("data:image/png;base64,")
    assert data_uri(np.zeros((3, 84, 84), np.uint8)).startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_pictures_of_other_channels_show_their_mean_in_grey(channels):
    image = np.zeros((channels, 28, 28), np.uint8)
    image[0] = 40 * channels
    kind, _, packed = data_uri(image).partition(",")
    assert kind == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(packed)))
    assert (shown.mode, shown.getextrema()) == ("L", (40, 40))


def test_a_strategy_that_adapts_nothing_has_its_place_in_the_chart():
    outcomes = [
        AccuracyPoint("protonet", line_style(0, 0), 0, 70.0, 1.0),
        AccuracyPoint("km", line_style(1, 0), 2204, 80.0, 1.0),
    ]
    svg = accuracy_by_parameters(outcomes, "cost", "said aloud")
    assert ">protonet</text>" in svg
    assert 'aria-label="said aloud"' in svg
    assert inline('<?xml?><svg viewBox="0 0 1 1" id="a"></svg>', "n", '"').count("&quot;") == 1


@pytest.mark.parametrize(("count", "label"), [(2, "km"), (19, "meta-curvature"), (19, "km, " + "an option, " * 5)])
def test_axes_have_room_beside_however_long_a_legend(count, label):
    points = [CurvePoint(i, 1.0, 0.5, 0.4, 1.0) for i in (0, 10)]
    curves = [Curve(f"{label}{number}", line_style(number, 0), points) for number in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, that there is no room
        svg = learning_curves(curves, 5, "curves", "Curves")
    bottom, top = re.search(r'id="curves-patch_2">\s*<path d="M \S+ (\S+) \s*L \S+ \S+ \s*L \S+ (\S+)', svg).groups()
    assert float(bottom) - float(top) > 100


def test_histogram_of_equal_weights_has_its_axes():
    assert ">zeros</text>" in histogram({"zeros": np.zeros(9), "more": np.zeros(9)}, "n", "none")


def test_a_curve_is_read_as_it_was_written(tmp_path):
    points = [CurvePoint(0, None, None, 0.1, 0.5), CurvePoint(5, 1.5, 0.25, 0.2, 2.0)]
    (tmp_path / "curve.csv").write_text(curve_csv(points))
    assert read_curve(tmp_path / "curve.csv") == points


def test_a_point_without_validation_is_read_again(tmp_path):
    text = curve_csv([CurvePoint(5, 1.5, 0.25, math.nan, 2.0)])
    (tmp_path / "curve.csv").write_text(text)
    (point,) = read_curve(tmp_path / "curve.csv")
    assert not point.validated
    assert curve_csv([point]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n",
        "iteration,train_loss,train_accuracy,val_accuracy,seconds\n0,,,0.5,\n",
        "iteration,train_loss,train_accuracy,val_accuracy,seconds\nx,,,0.5,1\n",
        "\x00\xff",
    ],
)
def test_what_is_no_curve_is_named(tmp_path, text):
    (tmp_path / "curve.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"Expected a learning curve in .*curve\.csv"):
        read_curve(tmp_path / "curve.csv")
