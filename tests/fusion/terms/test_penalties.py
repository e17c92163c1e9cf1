"""Differences of cells and the penalties on them: adjoint, symmetries, values."""

import numpy as np
import pytest
from calibrated_cases import TURNS
from convex import matrix

from hyperspy_fusion.fusion.terms.penalties import CellPenalty, cell_adjoint, cell_differences

SHAPES = [(6, 9), (2, 5), (5, 2), (2, 2), (3, 3)]
KINDS = ["tv", "directional", "tgv", "guided"]
# left, right, top and bottom of the turned image, and the sign of their differences
EDGES = {
    "upside down": ([0, 1, 3, 2], [-1, -1, 1, 1]),
    "mirrored": ([1, 0, 2, 3], [1, 1, -1, -1]),
    "transposed": ([2, 3, 0, 1], [1, 1, 1, 1]),
    "by half a turn": ([1, 0, 3, 2], [-1, -1, -1, -1]),
}


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


def total_variation(u, joint=True):
    u = u[None] if u.ndim == 2 else u
    return CellPenalty("tv", len(u), joint, 0.0, None).value(u)


def penalty(kind, n=2, joint=True, shape=(6, 9), guide=None, part=None):
    cells = (4, shape[0] - 1, shape[1] - 1)
    guide = 0.4 * np.tanh(normal(9, cells)) if guide is None else guide
    if kind == "directional":
        part = 0.3 * np.tanh(normal(8, cells[1:])) ** 2 if part is None else part
        guide = np.concatenate([guide, part[None]])
    return CellPenalty(kind, n, joint, 0.7, guide if kind in ("directional", "guided") else None)


@pytest.mark.parametrize("shape", SHAPES)
def test_adjoint_is_the_transposed_matrix(shape):
    d, u = matrix(*shape), normal(0, shape)
    np.testing.assert_allclose(cell_differences(u).ravel(), d @ u.ravel(), atol=1e-14)
    y = normal(1, (4, 1, shape[0] - 1, shape[1] - 1))
    np.testing.assert_allclose(cell_adjoint(y)[0].ravel(), d.T @ y.ravel(), atol=1e-14)


def test_differences_of_four_pixels_and_penalty_of_one():
    u = np.array([[1.0, 2.0], [4.0, 8.0]])
    np.testing.assert_allclose(np.sqrt(2) * cell_differences(u).ravel(), [3, 6, 1, 4])
    # Four cells with two edges each of height 1/sqrt(2).
    u = np.zeros((5, 5))
    u[2, 2] = 2.0
    np.testing.assert_allclose(total_variation(u), 4 * 2)


def test_sums_of_the_operator_are_those_the_steps_are_made_of():
    """Rows of two entries of 1/sqrt(2), columns of eight at the most, a norm of sqrt(8) at the most."""
    d = np.abs(matrix(7, 6))
    np.testing.assert_allclose(d.sum(axis=1), np.sqrt(2))
    np.testing.assert_allclose(d.sum(axis=0).max(), 8 * np.sqrt(0.5))
    assert np.linalg.norm(matrix(7, 6), 2) ** 2 <= 8


@pytest.mark.parametrize("turn", TURNS)
def test_differences_turn_with_the_image(turn):
    u, (edges, signs) = normal(0, (2, 5, 7)), EDGES[turn]
    expected = np.array(signs)[:, None, None, None] * TURNS[turn](cell_differences(u))[edges]
    np.testing.assert_allclose(cell_differences(TURNS[turn](u)), expected, atol=1e-14)


def turned_fields(fields, kind, turn):
    """Slopes along y and along x of each map change places and signs; a slope against the image does not."""
    turned = TURNS[turn](fields)
    if kind != "tgv":
        return turned
    along_y, along_x = turned[0::2], turned[1::2]
    if turn == "transposed":
        along_y, along_x = along_x, along_y
    signs = {"upside down": (-1, 1), "mirrored": (1, -1), "transposed": (1, 1), "by half a turn": (-1, -1)}[turn]
    return np.stack([signs[0] * along_y, signs[1] * along_x], axis=1).reshape(turned.shape)


@pytest.mark.parametrize("kind, joint", [("tv", True), ("directional", False), ("tgv", False), ("guided", True)])
@pytest.mark.parametrize("turn", TURNS)
def test_penalty_turns_with_the_maps(turn, kind, joint):
    plain = penalty(kind, joint=joint)
    u, fields = normal(0, (2, 6, 9)), normal(1, (plain.n_fields, 5, 8))
    edges, signs = EDGES[turn]
    guide = part = None
    if plain.guide is not None:
        guide, part = np.array(signs)[:, None, None] * TURNS[turn](plain.guide)[edges], TURNS[turn](plain.guide[-1])
    turned = penalty(kind, joint=joint, guide=guide, part=part)
    value = turned.value(TURNS[turn](u), turned_fields(fields, kind, turn))
    np.testing.assert_allclose(value, plain.value(u, fields), rtol=1e-12)


def test_edge_along_an_axis_costs_height_times_length():
    """Over the cells: an image of 6 rows has edges five cells long."""
    u = np.zeros((6, 9))
    u[:, 4:] = 3.0
    np.testing.assert_allclose(total_variation(u), 3 * 5)
    np.testing.assert_allclose(total_variation(u.T), 3 * 5)


def test_length_of_slopes_and_over_maps():
    y, x = np.mgrid[:6, :9]
    np.testing.assert_allclose(total_variation(3.0 * y + 4.0 * x), 5 * 5 * 8)
    y, x = np.mgrid[:6, :9]
    u = np.stack([3.0 * x, 4.0 * x])
    np.testing.assert_allclose(total_variation(u, joint=True), 5 * 40)
    np.testing.assert_allclose(total_variation(u, joint=False), 7 * 40)
    none = CellPenalty(None, 2, True, 0.0, None)
    assert none.value(normal(0, (2, 4, 4))) == 0 and none.n_fields == 0


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_constant_maps_cost_nothing(kind):
    plain = penalty(kind)
    assert plain.value(np.full((2, 6, 9), 7.0), np.zeros((plain.n_fields, 5, 8))) == 0


def test_directional_lets_edges_of_the_guide_pass():
    """Along xi a share of 1 - eta of the length is left, across it all of it."""
    y, x = np.mgrid[:6, :9].astype(float)
    along = cell_differences(x) / np.linalg.norm(cell_differences(x), axis=0)
    plain = penalty("directional", n=1, guide=np.sqrt(0.95) * along)
    np.testing.assert_allclose(plain.value(x[None]), 0.05 * 40)
    np.testing.assert_allclose(plain.value(y[None]), 40)
    # A mixed difference of T has a length of T / sqrt(2), of which c is taken off.
    one = np.array([[0.0, 0.0], [0.0, 2.0]])  # slopes of 1 along both axes and a mixed difference of 2
    cell = CellPenalty("directional", 1, True, 0.0, np.array([0, 0, 0, 0, 0.8])[:, None, None])
    np.testing.assert_allclose(cell.value(one[None]), np.sqrt(1 + 1 + (0.2 * 2) ** 2 / 2))


def test_ramps_and_maps_linear_in_the_guide_cost_nothing():
    """In the order along y, along x, of one map after the other."""
    y, x = np.mgrid[:6, :9].astype(float)
    u = np.stack([2 * y - 3 * x, 5 * x + y])
    fields = np.broadcast_to(np.array([2, -3, 1, 5.0])[:, None, None], (4, 5, 8))
    np.testing.assert_allclose(penalty("tgv").value(u, fields), 0, atol=1e-12)
    assert penalty("tgv").value(u, fields[::-1]) > 1
    h = normal(3, (6, 9))
    u, slopes = np.stack([2 * h + 1, -h]), np.broadcast_to(np.array([2.0, -1.0])[:, None, None], (2, 5, 8))
    guided = penalty("guided", guide=cell_differences(h))
    np.testing.assert_allclose(guided.value(u, slopes), 0, atol=1e-12)
    # a slope that changes by 1 along an edge costs second_order times the length of that edge
    stepped = slopes + (np.arange(8) >= 4)
    step = guided.value(u, stepped) - CellPenalty("guided", 2, True, 1e-300, guided.guide).value(u, stepped)
    np.testing.assert_allclose(step, 0.7 * np.sqrt(2) * 4, rtol=1e-12)


@pytest.mark.parametrize("kind, joint, per_map, group, field_group", [
    ("tv", True, 0, 3, 0), ("tv", False, 0, 1, 0), ("directional", True, 0, 3, 0),
    ("guided", True, 1, 3, 3), ("guided", False, 1, 1, 1), ("tgv", True, 2, 3, 6), ("tgv", False, 2, 1, 2),
])  # fmt: skip
def test_sizes(kind, joint, per_map, group, field_group):
    plain = penalty(kind, n=3, joint=joint)
    assert (plain.n_fields, plain.group, plain.field_group) == (3 * per_map, group, field_group)


@pytest.mark.parametrize("kind, joint", [("tv", True), ("directional", False), ("tgv", True), ("guided", False)])
def test_penalty_is_a_seminorm(kind, joint):
    plain = penalty(kind, joint=joint)
    u, v = normal(0, (2, 2, 6, 9))
    f, g = normal(1, (2, plain.n_fields, 5, 8))
    np.testing.assert_allclose(plain.value(-3 * u, -3 * f), 3 * plain.value(u, f), rtol=1e-12)
    assert plain.value(u + v, f + g) <= plain.value(u, f) + plain.value(v, g)
