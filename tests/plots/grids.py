"""What grids of images hold."""

import numpy as np

GAP = 4  # of tiles that are 64 pixels wide


def mosaic(figure, axes=0):
    (image,) = figure.axes[axes].images
    return np.asarray(image.get_array())


def tile(figure, row, column, *, lead=0, axes=0, rows_per_group=None):
    """Cut the 8x8 image of a cell out of a mosaic."""
    top = row * (64 + GAP) + (row // rows_per_group * 3 * GAP if rows_per_group else 0)
    left = column * (64 + GAP) + (4 * GAP if lead and column >= lead else 0)
    return mosaic(figure, axes)[top : top + 64 : 8, left : left + 64 : 8, 0]


def texts(labels):
    return [label.get_text() for label in labels]
