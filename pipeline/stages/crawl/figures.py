"""What the fetching of a shard cost: latencies, names looked up, connections, bytes. Constant memory."""

from __future__ import annotations

import math
from collections import Counter

#: latencies are counted in steps of this factor: a percentile is right to half a step
STEP = 1.05
_LOG_STEP = math.log(STEP)


class Latencies:
    """Percentiles of times in seconds, within 3 %."""

    def __init__(self) -> None:
        self._steps: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._steps[int(math.log(max(seconds, 1e-6)) / _LOG_STEP - 0.5)] += 1

    def percentile(self, share: float) -> float:
        """Seconds under which `share` (0..1) of them lie; 0 where there are none."""
        left = share * self._steps.total()
        for step in sorted(self._steps):
            left -= self._steps[step]
            if left <= 0:
                return STEP**step
        return 0.0


class FetchFigures:
    """Counts that the parts of the client add to; see `as_dict` for what they mean."""

    def __init__(self) -> None:
        self._begin()

    def take(self) -> dict[str, float | int]:
        """The figures so far; they begin anew."""
        found = self.as_dict()
        self._begin()
        return found

    def _begin(self) -> None:
        self.requests = 0
        self.rule_requests = 0
        self.bytes = 0
        self.latencies = Latencies()
        self.first_bytes = Latencies()
        self.dns_lookups = 0
        self.dns_cached = 0
        self.dns_failures = 0
        self.dns_seconds = 0.0
        self.connections = 0
        self.connect_seconds = 0.0

    def as_dict(self) -> dict[str, float | int]:
        """The figures as they go into a shard's statistics.

        requests: sent, those for robots.txt and tdmrep.json (rule_requests) included; bytes: of the bodies.
        latency_*: seconds from sending a request for a picture to the end of its body, first_byte_*: to its
        headers. dns_*: names asked of the resolver, answers from the cache, failures, mean milliseconds.
        connections_opened, connections_reused (requests that needed no new one), connect_mean_ms (with DNS
        and TLS).
        """
        ended = {f"latency_p{p}_s": round(self.latencies.percentile(p / 100), 4) for p in (50, 90, 99)}
        begun = {f"first_byte_p{p}_s": round(self.first_bytes.percentile(p / 100), 4) for p in (50, 90, 99)}
        return {
            "requests": self.requests,
            "rule_requests": self.rule_requests,
            "bytes": self.bytes,
            **ended,
            **begun,
            "dns_lookups": self.dns_lookups,
            "dns_cached": self.dns_cached,
            "dns_failures": self.dns_failures,
            "dns_mean_ms": round(1000 * self.dns_seconds / max(1, self.dns_lookups), 3),
            "connections_opened": self.connections,
            "connections_reused": max(0, self.requests - self.connections),
            "connect_mean_ms": round(1000 * self.connect_seconds / max(1, self.connections), 3),
        }
