"""The games that trainings of reinforcement learning play, against loops in plain numbers."""

from __future__ import annotations

import math

import games
import numpy as np
import pytest


def test_a_ball_falls_into_the_paddle_or_beside_it():
    """Oracle: the two cells that are 1, counted by hand on a board of 10 rows and 5 columns."""
    seen = games.board(3, np.array([4, 0]), np.array([2, 1])).numpy()
    assert [np.flatnonzero(row).tolist() for row in seen] == [[3 * 5 + 4, 9 * 5 + 2], [3 * 5, 9 * 5 + 1]]


def test_a_paddle_stays_on_the_board():
    assert games.moved(np.array([0, 0, 4, 2]), np.array([0, 2, 2, 1])).numpy().tolist() == [0, 1, 4, 2]


def test_a_pendulum_swings_as_its_equation_says():
    """Oracle: theta'' = 3 g / (2 l) sin theta + 3 u / (m l^2), semi-implicit Euler, g = 10, m = l = 1."""
    angle, speed, torque = 0.3, -0.7, 1.5
    state, reward = games.swung(np.float32([[angle + 4 * math.pi, speed]]), np.float32([torque]))
    faster = speed + 0.05 * (15 * math.sin(angle) + 3 * torque)
    assert state.numpy()[0] == pytest.approx([angle + 0.05 * faster, faster], abs=1e-4)
    assert reward.numpy()[0] == pytest.approx(-0.1 * (angle**2 + 0.1 * speed**2 + 0.001 * torque**2), abs=1e-5)
    assert games.seen(state).numpy()[0, :2] == pytest.approx([math.cos(state[0, 0]), math.sin(state[0, 0])])


@pytest.mark.parametrize(
    ("place", "action", "after", "reward", "ends"),
    [
        (0, 0, 12, -1, 0),  # up from the start
        (0, 1, 0, -100, 0),  # right from it: into the cliff
        (12 + 5, 2, 0, -100, 0),  # down from the middle of the second row: into the cliff
        (12 + 11, 2, 11, -1, 1),  # down from its end: the goal
        (3 * 12, 0, 3 * 12, -1, 0),  # against the upper wall
        (2 * 12, 3, 2 * 12, -1, 0),  # against the left one
    ],
)
def test_who_walks_off_the_cliff_is_back_at_the_start(place, action, after, reward, ends):
    got = games.walked(np.array([place], np.int32), np.array([action], np.int32))
    assert [float(x.numpy()[0]) for x in got] == [after, reward, ends]
