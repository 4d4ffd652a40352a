"""The soak in small: `make soak` is the same with thousands of requests, and with real weights."""

from __future__ import annotations

import pytest

from tests.soak import soak


@pytest.mark.long
def test_hundreds_of_requests_and_faults_leave_nothing_behind() -> None:
    summary = soak(200)
    assert summary["wrong"] == []
    assert summary["kills"] >= 5
    assert summary["cached_tokens"] > 0
    assert summary["preemptions"] > 0
