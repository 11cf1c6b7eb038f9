"""What a record looks like: tables, columns, and how a file says that it is one.

A million steps fit into 100 MB. So a step keeps a number that seldom changes (`SELDOM`) only where it differs from the
step before, and NULL elsewhere; an applied norm that equals the norm is kept as it is, for anybody to read. SQLite
turns NaN into NULL: a NULL `norm` or `applied_norm` is NaN, a NULL in another column is "not known".
"""

from __future__ import annotations

from gradwatch.core.snapshot import VERDICTS

#: Says in the head of an SQLite file that it is a record of gradwatch: "grdw".
APPLICATION_ID = 0x67726477

#: Of the tables below. A reader refuses a newer one, and reads every older one. A further column of `NUMBERS` needs no
#: new version: in a file that lacks it, it is not known.
VERSION = 1

SUFFIX = ".sqlite"

#: Columns of a step that are kept only where they change.
SELDOM = (
    "learning_rate",
    "loss_scale",
    "reach",
    "update_ratio",
    "input_rms",
    "target_rms",
    "replica_ratio",
    "replica",
)

#: The share by which a number of `SELDOM` must differ to have changed: these are there to show what stands out.
LEAST_CHANGE = {"input_rms": 0.05, "target_rms": 0.05, "replica_ratio": 0.05}

#: In place of a number of `SELDOM` that was known and no longer is.
NO_LONGER = -1

#: Numbers of a step, in the order of the table.
NUMBERS = ("loss", "norm", "applied_norm", "clip_norm", "threshold", "score", *SELDOM)

#: Words for the column `verdict`; the last one is for steps that came too fast and were not seen.
WORDS = (*VERDICTS, "gap")
GAP = WORDS.index("gap")

_OF_A_VARIABLE = """
  step INTEGER NOT NULL, time_ms INTEGER NOT NULL, variable INTEGER NOT NULL REFERENCES variables (id),
  norm REAL, weight_norm REAL, update_ratio REAL
"""

TABLES = f"""
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE verdicts (id INTEGER PRIMARY KEY, word TEXT NOT NULL);
CREATE TABLE variables (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, shape TEXT);
CREATE TABLE steps (
  id INTEGER PRIMARY KEY, step INTEGER NOT NULL, time_ms INTEGER NOT NULL,
  {" REAL, ".join(NUMBERS)} REAL,
  verdict INTEGER NOT NULL, missed INTEGER
);
CREATE TABLE layers ({_OF_A_VARIABLE});
CREATE TABLE around ({_OF_A_VARIABLE});
CREATE TABLE events (
  step INTEGER NOT NULL, time_ms INTEGER NOT NULL, kind TEXT NOT NULL, norm REAL, threshold REAL,
  detail TEXT NOT NULL, follows INTEGER, episodes INTEGER NOT NULL, shares TEXT NOT NULL
);
CREATE TABLE alerts (
  step INTEGER NOT NULL, time_ms INTEGER NOT NULL, kind TEXT NOT NULL, severity TEXT NOT NULL, phase TEXT NOT NULL,
  message TEXT NOT NULL, advice TEXT NOT NULL, action TEXT NOT NULL
);
CREATE TABLE notes (step INTEGER NOT NULL, time_ms INTEGER NOT NULL, text TEXT NOT NULL);
"""
