"""For people who write their own policy or detector: does it keep the contract, and how does it behave?

    from gradwatch import testing

    def test_my_policy_conforms():
        testing.check_policy(my_policy())

`check_policy` and `check_detector` run the checks that our own go through. `streams` makes gradient norms with
and without faults, `replay` runs a policy or detector over them in numpy.
"""

from __future__ import annotations

from gradwatch.testing import replay, streams
from gradwatch.testing.conformance import check_detector, check_policy

__all__ = ["check_detector", "check_policy", "replay", "streams"]
