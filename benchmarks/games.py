"""Two games that a training can play inside its own compiled step: what they do is written in TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

ROWS, COLUMNS = 10, 5  # of the board of `fallen` and `board`


def board(row: int, ball: Any, paddle: Any) -> Any:
    """What a player of "catch" sees: the board as 0 and 1, shape [games, ROWS * COLUMNS].

    Source: bsuite (Osband et al. 2020, arXiv 1908.03568), environment "catch".

    Args:
      row: of the ball; it falls one row a step.
      ball, paddle: their columns, int32, shape [games].
    """
    cells = ROWS * COLUMNS
    return tf.one_hot(row * COLUMNS + ball, cells) + tf.one_hot(cells - COLUMNS + paddle, cells)


def moved(paddle: Any, action: Any) -> Any:
    """The paddle's column after action 0 (left), 1 (stay) or 2 (right), int32, shape [games]."""
    return tf.clip_by_value(paddle + action - 1, 0, COLUMNS - 1)


def swung(state: Any, torque: Any) -> tuple[Any, Any]:
    """A step of 0.05 s of a pendulum of 1 kg and 1 m that has to be swung up; (state, reward, shape [games]).

    Source: Gymnasium, environment "Pendulum-v1"; the reward is a tenth of its.

    Args:
      state: angle from upright and its speed, shape [games, 2].
      torque: in newton metres, shape [games].
    """
    angle, speed = tf.unstack(state, axis=1)
    angle = tf.math.floormod(angle + math.pi, 2 * math.pi) - math.pi
    reward = -0.1 * (angle * angle + 0.1 * speed * speed + 0.001 * torque * torque)
    speed = tf.clip_by_value(speed + 0.05 * (15.0 * tf.sin(angle) + 3.0 * torque), -8.0, 8.0)
    return tf.stack([angle + 0.05 * speed, speed], 1), reward


def seen(state: Any) -> Any:
    """What a player of the pendulum sees, shape [games, 3]."""
    return tf.stack([tf.cos(state[:, 0]), tf.sin(state[:, 0]), 0.25 * state[:, 1]], 1)


HEIGHT, WIDTH = 4, 12  # of the grid of `walked`


def walked(place: Any, action: Any) -> tuple[Any, Any, Any]:
    """A step beside a cliff; (place, reward, 1 where the goal was reached, each of shape [games]).

    The lowest row of the grid is start, cliff and goal. A step costs 1. One into the cliff costs 100, and the walker is
    back at the start.

    Source: Sutton and Barto 2018, Reinforcement Learning, example 6.6.

    Args:
      place: row * WIDTH + column, int32, shape [games]; row 0 is the lowest, 0 the start and WIDTH - 1 the goal.
      action: 0 to 3, up, right, down, left, int32, shape [games].
    """
    row = tf.clip_by_value(place // WIDTH + tf.gather([1, 0, -1, 0], action), 0, HEIGHT - 1)
    column = tf.clip_by_value(place % WIDTH + tf.gather([0, 1, 0, -1], action), 0, WIDTH - 1)
    fell = (row == 0) & (column > 0) & (column < WIDTH - 1)
    place = tf.where(fell, 0, row * WIDTH + column)
    return place, tf.where(fell, -100.0, -1.0), tf.cast(place == WIDTH - 1, tf.float32)
