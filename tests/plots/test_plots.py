"""Figures of models: what is in them, and that drawing leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pyro_ssvae import M1, M2
from pyro_ssvae.plots import (
    plot_analogies,
    plot_feature_means,
    plot_interpolations,
    plot_latent_map,
    plot_reconstructions,
    plot_samples,
)
from pyro_ssvae.plots.images import plot_traversals
from pyro_ssvae.plots.style import ALARM, INK, class_colours, to_png
from tests.plots.grids import GAP, mosaic, texts, tile


def make_model(event_shape=(1, 8, 8), num_classes=3, latent_dim=2, **options):
    torch.manual_seed(1)
    options = {"hidden_dims": (6,), "classifier": "mlp", "dropout": 0.3} | options
    return M2(event_shape, num_classes, latent_dim=latent_dim, **options)


def make_examples(model, n=7):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(n, *model.event_shape, generator=generator)
    return x.to(next(model.parameters()).device), torch.arange(n) % model.num_classes


FIGURES = {
    "samples": lambda m, x, y: plot_samples(m, num_columns=2, seed=3),
    "analogies": lambda m, x, y: plot_analogies(m, x),
    "reconstructions": lambda m, x, y: plot_reconstructions(m, x, y),
    "latent_map": lambda m, x, y: plot_latent_map(m, x, y, labelled=y == 0, seed=3),
    "feature_means": lambda m, x, y: plot_feature_means(m, x, y, seed=3),
}


def all_random_states(device):
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002  (it must stay)
    return [torch.get_rng_state(), *cuda, torch.from_numpy(numpy_state)], random.getstate()


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_preserves_random_states_and_training_modes(name, device):
    model = make_model(batch_norm=True).to(device)
    model.train()
    model.decoder.eval()
    buffers = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    tensors, python = all_random_states(device)
    FIGURES[name](model, *make_examples(model))
    tensors_after, python_after = all_random_states(device)
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_after, strict=True))
    assert python == python_after
    assert modes == [part.training for part in model.modules()]
    assert all(torch.equal(value, buffers[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["latent_map", "feature_means"])  # for the others see test_run_figures
def test_the_same_figure_is_the_same_png(name):
    model = make_model()
    first = to_png(FIGURES[name](model, *make_examples(model)))
    torch.rand(3)
    assert to_png(FIGURES[name](model, *make_examples(model))) == first
    assert first.startswith(b"\x89PNG\r\n\x1a\n")


def test_samples_have_a_row_per_class_and_a_column_per_sample():
    model = make_model()
    figure = plot_samples(model, num_columns=4, class_names=["a", "b", "c"], seed=5)
    assert mosaic(figure).shape == (3 * 64 + 2 * GAP, 4 * 64 + 3 * GAP, 3)
    assert texts(figure.axes[0].get_yticklabels()) == ["a", "b", "c"]
    torch.manual_seed(5)
    expected, _ = model.generate(12, torch.arange(3).repeat_interleave(4))
    np.testing.assert_allclose(tile(figure, 1, 2), expected[6, 0], rtol=1e-6)
    assert not np.array_equal(mosaic(plot_samples(model, num_columns=4, seed=6)), mosaic(figure))


def test_analogies_show_the_source_and_every_class():
    model = make_model().eval()
    x, y = make_examples(model, 4)
    figure = plot_analogies(model, x, y)
    assert mosaic(figure).shape == (4 * 64 + 3 * GAP, 4 * 64 + 3 * GAP + 4 * GAP, 3)
    assert texts(figure.axes[0].get_xticklabels()) == ["given", "0", "1", "2"]
    np.testing.assert_allclose(tile(figure, 2, 0, lead=1), x[2, 0], rtol=1e-6)
    with torch.no_grad():
        z = model.encode(x, y).mean
        decoded = model.decode(torch.full((4,), 1), z).mean
    np.testing.assert_allclose(tile(figure, 2, 2, lead=1), decoded[2, 0], rtol=1e-5)


def test_analogies_predict_classes_that_are_not_given():
    model = make_model().eval()
    x, _ = make_examples(model)
    given = mosaic(plot_analogies(model, x, model.predict(x)))
    assert np.array_equal(mosaic(plot_analogies(model, x)), given)
    other = (model.predict(x) + 1) % 3
    assert not np.array_equal(mosaic(plot_analogies(model, x, other)), given)


def test_reconstructions_show_examples_and_predictions():
    model = make_model().eval()
    x, _ = make_examples(model, 12)
    probability, predicted = model.predict_proba(x).max(-1)
    y = predicted.clone()
    y[3] = (y[3] + 1) % 3
    figure = plot_reconstructions(model, x, y)
    assert len(figure.axes) == 2  # bands of ten
    with torch.no_grad():
        decoded = model.decode(predicted, model.encode(x, predicted).mean).mean
    np.testing.assert_allclose(tile(figure, 0, 1, axes=1), x[11, 0], rtol=1e-6)
    np.testing.assert_allclose(tile(figure, 1, 1, axes=1), decoded[11, 0], rtol=1e-5)
    captions = figure.axes[0].get_xticklabels()
    assert captions[0].get_text() == f"{predicted[0]}\n{probability[0]:.0%}"
    assert captions[3].get_text().endswith(f"\nis {y[3]}")
    colours = [caption.get_color() for caption in captions]
    assert colours == [INK] * 3 + [ALARM] + [INK] * 6
    assert texts(plot_reconstructions(model, x).axes[0].get_xticklabels())[3].count("\n") == 1


@pytest.mark.parametrize("draw", [plot_analogies, plot_reconstructions])
def test_of_many_examples_some_of_every_class_are_drawn(draw):
    model = make_model()
    y = torch.tensor([0] * 50 + [1] * 6 + [2] * 4)
    x = (torch.arange(60) / 60.0)[:, None, None, None].expand(-1, 1, 8, 8)

    def shown(seed):
        figure = draw(model, x, y, num_images=6, seed=seed)
        cells = [tile(figure, i, 0, lead=1) if draw is plot_analogies else tile(figure, 0, i) for i in range(6)]
        return [round(60 * float(cell[0, 0])) for cell in cells]

    assert [int(y[i]) for i in shown(0)] == [0, 0, 1, 1, 2, 2]
    assert len(set(shown(0))) == 6
    assert shown(0) == shown(0) != shown(1)


@pytest.mark.parametrize("event_shape", [(8, 8), (1, 8, 8), (3, 8, 8)])
def test_image_shapes(event_shape):
    model = make_model(event_shape)
    x, y = make_examples(model)
    plot_reconstructions(model, x, y)
    figure = plot_samples(model, num_columns=2)
    assert mosaic(figure).shape == (3 * 64 + 2 * GAP, 2 * 64 + GAP, 3)


def test_colours_are_channels():
    model = make_model((3, 8, 8))
    x, _ = make_examples(model)
    shown = mosaic(plot_analogies(model, x))[:64:8, :64:8]
    np.testing.assert_allclose(shown, x[0].permute(1, 2, 0), rtol=1e-6)


def test_value_range_maps_to_black_and_white_and_clips():
    model = make_model(likelihood="gaussian")
    x = torch.full((1, 1, 8, 8), -1.0)
    x[..., 0], x[..., 1] = 3.0, 1.0
    shown = tile(plot_analogies(model, x, value_range=(-1.0, 3.0)), 0, 0, lead=1)
    assert shown[0, :3].tolist() == [1.0, 0.5, 0.0]
    assert tile(plot_analogies(model, x), 0, 0, lead=1)[0, :3].tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"value_range=\(1, 0\)"):
        plot_samples(model, value_range=(1, 0))
    with pytest.raises(ValueError, match="must be"):
        plot_samples(model, value_range=1.0)
    assert plot_samples(model, value_range=np.array([0.0, 1.0])) is not None


@pytest.mark.parametrize("shape", [(64,), (2, 8, 8), (1, 1, 8, 8)])
def test_examples_that_are_no_images_are_refused(shape):
    model = make_model(shape)
    x, _ = make_examples(model)
    for draw in (plot_samples, plot_analogies, plot_reconstructions):
        with pytest.raises(ValueError, match=r"are not images: .*are allowed"):
            draw(model) if draw is plot_samples else draw(model, x)


@pytest.mark.parametrize("draw", [plot_analogies, plot_reconstructions, plot_latent_map])
def test_wrong_examples_and_labels_are_refused(draw):
    model = make_model()
    x, y = make_examples(model)
    with pytest.raises(ValueError, match=r"shape \(7, 1, 4, 16\); the model takes examples of shape"):
        draw(model, x.reshape(7, 1, 4, 16), y)
    with pytest.raises(ValueError, match="at least 1"):
        draw(model, x[:0], y[:0])
    with pytest.raises(TypeError, match=r"uint8.*/ 255"):
        draw(model, (x * 255).to(torch.uint8), y)
    with pytest.raises(ValueError, match="6 labels for 7 examples"):
        draw(model, x, y[:6])
    with pytest.raises(ValueError, match="0 to 2 are allowed"):
        draw(model, x, y + 1)
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        draw(model, x, y, class_names=["a", "b"])


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (2.5, TypeError)])
def test_numbers_of_images_are_checked(number, error):
    model = make_model()
    with pytest.raises(error, match="num_columns"):
        plot_samples(model, num_columns=number)
    with pytest.raises(error, match="num_images"):
        plot_analogies(model, make_examples(model)[0], num_images=number)


def test_two_latents_are_shown_as_they_are():
    model = make_model().eval()
    x, y = make_examples(model)
    figure = plot_latent_map(model, x, y, labelled=[1, 0, 0, 1, 0, 0, 0])
    rest, ringed = figure.axes[0].collections
    with torch.no_grad():
        z = model.encode(x, y).mean.double().numpy()
    assert len(ringed.get_offsets()) == 2
    for points, expected in ((ringed, z[[0, 3]]), (rest, z[[1, 2, 4, 5, 6]])):
        shown = np.sort(np.asarray(points.get_offsets()), axis=0)
        np.testing.assert_allclose(shown, np.sort(expected, axis=0))
    assert texts(figure.legends[0].get_texts()) == ["0", "1", "2", "labelled (2)"]
    assert "class" in figure.get_supxlabel()


def test_points_have_the_colour_of_their_class_and_unknown_ones_are_grey():
    model = make_model().eval()
    x, _ = make_examples(model, 4)
    y = torch.tensor([2, -1, 0, 2])
    figure = plot_latent_map(model, x, y)
    points = figure.axes[0].collections[0]
    completed = torch.where(y < 0, model.predict(x), y)
    with torch.no_grad():
        z = model.encode(x, completed).mean.double().numpy()
    expected = [*class_colours(3), np.array([0.8, 0.8, 0.8, 1.0])]
    for offset, colour in zip(points.get_offsets(), points.get_facecolors(), strict=True):
        index = np.abs(z - offset).sum(1).argmin()
        np.testing.assert_allclose(colour[:3], expected[y[index]][:3])
    assert "unknown" in texts(figure.legends[0].get_texts())


@pytest.mark.parametrize("latent_dim", [1, 5])
def test_maps_of_one_latent_and_of_many(latent_dim):
    model = make_model(latent_dim=latent_dim)
    figure = plot_latent_map(model, *make_examples(model))
    assert len(figure.axes[0].collections[0].get_offsets()) == 7


def test_a_collapsed_posterior_is_drawn():
    model = make_model(latent_dim=4)
    for parameter in model.encoder.parameters():
        parameter.data.zero_()
    figure = plot_latent_map(model, *make_examples(model))
    assert figure.axes[0].get_xlabel() == "PC 1 (0% of the variance)"


def test_latent_maps_refuse_what_they_cannot_draw():
    model = make_model(latent_dim=4)
    x, y = make_examples(model)
    with pytest.raises(ValueError, match="boolean for each of the 7 examples"):
        plot_latent_map(model, x, y, labelled=[True])
    with pytest.raises(ValueError, match="holds .2.; one boolean"):
        plot_latent_map(model, x, y, labelled=[2] * 7)
    with pytest.raises(ValueError, match="at least 2"):
        plot_latent_map(model, x[:1], y[:1])


def test_many_classes_get_a_continuous_map():
    assert len(np.unique(class_colours(10), axis=0)) == 10
    assert len(np.unique(class_colours(40), axis=0)) == 40
    model = make_model(num_classes=40)
    figure = plot_latent_map(model, *make_examples(model, 50))
    assert len(figure.axes) == 2  # the colour bar
    to_png(figure)


def test_feature_means_are_in_standard_deviations_of_the_given_examples():
    model = make_model((5,), likelihood="gaussian")
    x, y = make_examples(model, 6)
    x[:, 4] = 0.5
    y = y.clamp(max=1)  # no example of class 2
    figure = plot_feature_means(model, x, y)
    samples, given = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert samples.shape == given.shape == (3, 5)
    means = torch.stack([x[y == k].mean(0) for k in (0, 1)])
    expected = (means - means.mean(0)) / x.std(0, correction=0)
    np.testing.assert_allclose(given[:2, :4], expected[:, :4], atol=1e-5)
    assert np.isnan(given[2]).all()
    assert (given[:2, 4] == 0.0).all()
    assert texts(figure.axes[1].get_xticklabels()) == [*"01234"]
    model.feature_names = ("age", "height", "c", "d", "e")
    assert texts(plot_feature_means(model).axes[0].get_xticklabels()) == [*model.feature_names]


def test_feature_means_leave_missing_values_out():
    model = make_model((5,), likelihood="gaussian", missing=True)
    x, y = make_examples(model, 6)
    x[0, 1] = x[3, 2] = torch.nan
    given = np.asarray(plot_feature_means(model, x, y).axes[1].images[0].get_array())
    means = torch.stack([x[y == k].nanmean(0) for k in range(3)])
    np.testing.assert_allclose(given, (means - means.mean(0)) / torch.tensor(np.nanstd(x.numpy(), 0)), atol=1e-5)


def test_feature_means_check_their_arguments():
    model = make_model((5,))
    x, y = make_examples(model)
    assert [axes.get_title(loc="left") for axes in plot_feature_means(model).axes[:-1]] == ["samples"]
    with pytest.raises(ValueError, match="x was given alone"):
        plot_feature_means(model, x)
    with pytest.raises(ValueError, match="y was given alone"):
        plot_feature_means(model, y=y)
    with pytest.raises(ValueError, match="6 labels for 7 examples"):
        plot_feature_means(model, x, y[:6])


def test_feature_means_leave_unknown_classes_out():
    model = make_model((5,), likelihood="gaussian")
    x, y = make_examples(model, 6)
    some = plot_feature_means(model, x, torch.where(torch.arange(6) < 4, y, -1)).axes[1].images[0].get_array()
    np.testing.assert_array_equal(some, plot_feature_means(model, x[:4], y[:4]).axes[1].images[0].get_array())
    plot_feature_means(model, x, torch.full((6,), -1))  # none known: samples alone


def test_unknown_classes_are_predicted_and_not_called_wrong():
    model = make_model().eval()
    x, _ = make_examples(model)
    predicted = model.predict(x)
    known = torch.where(torch.arange(7) < 3, predicted, -1)
    assert np.array_equal(mosaic(plot_analogies(model, x, known)), mosaic(plot_analogies(model, x, predicted)))
    assert "at the true or predicted class" in plot_analogies(model, x, known).get_supxlabel()
    captions = plot_reconstructions(model, x, known).axes[0].get_xticklabels()
    assert {caption.get_color() for caption in captions} == {INK}


def test_m1_images_are_decoded_means():
    torch.manual_seed(1)
    m1 = M1((1, 8, 8), latent_dim=3, hidden_dims=(6,)).eval()
    x = torch.rand(12, 1, 8, 8)
    decoded = m1.reconstruct(x)
    assert mosaic(plot_samples(m1, num_columns=3, seed=5)).shape == (3 * 64 + 2 * GAP, 3 * 64 + 2 * GAP, 3)
    torch.manual_seed(5)
    np.testing.assert_allclose(tile(plot_samples(m1, num_columns=3, seed=5), 1, 1), m1.generate(9)[4, 0], rtol=1e-5)
    figure = plot_reconstructions(m1, x)
    assert len(figure.axes) == 2
    np.testing.assert_allclose(tile(figure, 0, 1, axes=1), x[11, 0], rtol=1e-6)
    np.testing.assert_allclose(tile(figure, 1, 1, axes=1), decoded[11, 0], rtol=1e-5)
    paths = plot_interpolations(m1, x[:2], x[2:4], steps=5)
    assert texts(paths.axes[0].get_yticklabels()) == ["straight", "arc"] * 2
    for row, spherical in ((2, False), (3, True)):
        expected = m1.interpolate(x[1], x[3], steps=5, spherical=spherical)
        np.testing.assert_allclose(tile(paths, row, 0, rows_per_group=2), x[1, 0], rtol=1e-6)
        np.testing.assert_allclose(tile(paths, row, 6, rows_per_group=2), x[3, 0], rtol=1e-6)
        np.testing.assert_allclose(tile(paths, row, 3, rows_per_group=2), expected[2, 0], rtol=1e-5)
    figure = plot_traversals(m1, x, num_latents=2)
    chosen = m1.transform(x).std(0).argsort(descending=True)[1]
    assert texts(figure.axes[0].get_yticklabels())[1].startswith(f"z[{chosen}] (")
    np.testing.assert_allclose(tile(figure, 1, 8), m1.traverse(x[:1], int(chosen), [3.0])[0, 0, 0], rtol=1e-5)


def test_latent_map_of_m1_has_its_own_note():
    m1 = M1((1, 8, 8), latent_dim=2, hidden_dims=(6,))
    x = torch.rand(4, 1, 8, 8)
    figure = plot_latent_map(m1, x, [0, 1, -1, -1], class_names=["a", "b"])
    assert figure.get_supxlabel() == "The classes were not used in training."
    assert texts(figure.legends[0].get_texts()) == ["a", "b", "unknown"]
    assert texts(plot_latent_map(m1, x, [-1] * 4).legends[0].get_texts()) == ["unknown"]


def test_figures_show_themselves_in_notebooks_and_belong_to_no_window():
    model = make_model()
    figure = plot_samples(model, num_columns=1)
    assert figure.canvas.manager is None
    assert figure._repr_png_() == to_png(plot_samples(model, num_columns=1))
