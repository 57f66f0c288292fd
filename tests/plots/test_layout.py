"""Where the texts of figures lie: long names of classes, narrow images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from torch import Tensor

from pyro_ssvae import M1, M2
from pyro_ssvae.plots import (
    plot_analogies,
    plot_confusion_matrix,
    plot_feature_means,
    plot_latent_map,
    plot_reconstructions,
    plot_samples,
    plot_training_curves,
)
from pyro_ssvae.plots.images import plot_traversals
from pyro_ssvae.plots.style import to_png

NAMES = [f"papillary carcinoma, type {k}" for k in range(10)]


def make_model(event_shape: tuple[int, ...]) -> tuple[M2, Tensor, Tensor]:
    """A model of ten classes, and examples of each."""
    torch.manual_seed(1)
    model = M2(event_shape, 10, latent_dim=3, hidden_dims=(6,), classifier="mlp")
    return model, torch.rand(20, *event_shape), torch.arange(20) % 10


def lay_out(figure: Any) -> Any:
    figure.draw_without_rendering()
    return figure.axes[0].get_xticklabels()


@pytest.mark.parametrize("shape", [(1, 40, 4), (1, 24, 3), (1, 3, 24), (1, 28, 28)])
@pytest.mark.parametrize("names", [NAMES, None])
def test_names_of_classes_do_not_overlap(shape: tuple[int, ...], names: list[str] | None) -> None:
    model, x, y = make_model(shape)
    below = lay_out(plot_reconstructions(model, x, y, class_names=names))
    above = lay_out(figure := plot_analogies(model, x, y, class_names=names))
    angle = math.radians(above[0].get_rotation())
    for labels, is_slanted in ((below, False), (above, angle > 0)):
        boxes = [label.get_window_extent() for label in labels]
        for left, right in zip(boxes[:-1], boxes[1:], strict=True):
            if is_slanted:  # the distance between lines of text
                assert (right.x0 - left.x0) * math.sin(angle) > 0.9 * labels[0].get_fontsize() * figure.dpi / 72
            else:
                assert left.x1 <= right.x0
    assert boxes[-1].x1 <= figure.bbox.x1


@pytest.mark.parametrize(("shape", "factors"), [((1, 40, 4), (1, 4)), ((1, 3, 24), (3, 1)), ((1, 8, 24), (1, 1))])
def test_narrow_images_are_widened(shape: tuple[int, ...], factors: tuple[int, int]) -> None:
    model, x, _ = make_model(shape)
    image = np.asarray(plot_analogies(model, x[:1]).axes[0].images[0].get_array())[..., 0]
    zoom = math.ceil(64 / (max(shape)))
    rows, columns = (zoom * factor for factor in factors)
    expected = x[0, 0].numpy().repeat(rows, 0).repeat(columns, 1)
    np.testing.assert_allclose(image[: len(expected), : expected.shape[1]], expected, rtol=1e-6)
    assert (image[:, expected.shape[1]] == 1.0).all()  # the gap


def test_images_with_opacity_lie_on_white() -> None:
    model, x, _ = make_model((4, 64, 64))
    shown = np.asarray(plot_analogies(model, x[:1]).axes[0].images[0].get_array())[:64, :64]
    colours, opacity = x[0, :3].movedim(0, -1), x[0, 3:].movedim(0, -1)
    np.testing.assert_allclose(shown, opacity * colours + (1.0 - opacity), rtol=1e-5)


def test_the_legend_of_a_latent_map_leaves_title_and_points_room() -> None:
    model, x, y = make_model((1, 8, 8))
    figure: Any = plot_latent_map(model, x, y, class_names=NAMES, labelled=y == 0)
    figure.draw_without_rendering()
    legend, title, axes = (part.get_window_extent() for part in (figure.legends[0], figure._suptitle, figure.axes[0]))
    assert not legend.overlaps(title)
    assert axes.x1 < legend.x0 < legend.x1 <= figure.bbox.x1
    short: Any = plot_latent_map(model, x, y)
    short.draw_without_rendering()
    assert axes.width > 0.8 * short.axes[0].get_window_extent().width


def test_captions_of_many_classes_leave_the_note_room() -> None:
    torch.manual_seed(1)
    model = M2((1, 8, 8), 12, latent_dim=3, hidden_dims=(6,), classifier="mlp")
    names = [f"a very long class name indeed number {k}" for k in range(12)]
    figure: Any = plot_reconstructions(model, torch.rand(24, 1, 8, 8), torch.arange(24) % 12, class_names=names)
    figure.draw_without_rendering()
    note = figure._supxlabel.get_window_extent()
    for axes in figure.axes:
        assert not any(label.get_window_extent().overlaps(note) for label in axes.get_xticklabels())


def test_dollar_signs_in_names_are_not_formulas() -> None:
    model, x, y = make_model((4,))
    model.feature_names = ("$a_$", "price $_$", "b$", "c")
    names = ["$10 to $20", "$x_$", *map(str, range(8))]
    rows = [{"step": 1, "val/$_$": 0.5}, {"step": 2, "val/$_$": 0.4}]
    figures: list[Any] = [plot_confusion_matrix([0, 1], [0, 1], names), plot_training_curves(rows)]
    figures += [plot_feature_means(model, class_names=names), plot_latent_map(model, x, y, class_names=names)]
    for figure in figures:
        figure.draw_without_rendering()
    assert figures[0].axes[0].get_xticklabels()[0].get_text() == r"\$10 to \$20"  # which is drawn as $10 to $20


def test_names_in_any_script_have_a_font_or_a_single_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = plot_confusion_matrix([0, 1], [0, 1], ["\u1d81", "cat"])  # which the default, DejaVu Sans, lacks
    assert len(lay_out(shown)[0].get_fontfamily()) == 2
    default = [font for font in font_manager.fontManager.ttflist if font.name in ("DejaVu Sans", "Last Resort")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", default)
    figure = plot_confusion_matrix([0, 1], [0, 1], ["\u99ac", "cat"])
    with pytest.warns(UserWarning, match="No installed font has \u99ac, so that figures have boxes") as caught:
        to_png(figure)
    assert len(caught) == 1
    to_png(figure)  # no further warning


def test_traversals_of_a_model_with_classes_are_refused() -> None:
    model, x, _ = make_model((1, 8, 8))
    with pytest.raises(ValueError, match="Traversals need an M1, not M2"):
        plot_traversals(model, x)


def test_figures_of_a_table_without_classes() -> None:
    model, x = M1((5,), latent_dim=2, hidden_dims=(8,)), torch.rand(20, 5)
    assert plot_latent_map(model, x).axes[0].collections
    with pytest.raises(ValueError, match=r"plot_latent_map, or plot_feature_means if there are classes"):
        plot_samples(model)
    with pytest.raises(ValueError, match="Class means need a model with classes, and this M1 has none"):
        plot_feature_means(model)
