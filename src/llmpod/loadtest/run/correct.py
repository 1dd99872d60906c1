"""Total time of a polled job: bounds from the polls, and a correction by RunPod's own times.

A poll sees a job's end late, by anything up to the gap between two polls. What is certain are two bounds: the job was
not done when the last poll that said so was sent, and it was done when the poll that said so came back. RunPod's own
`delayTime + executionTime`, plus one round trip to carry the request and the answer, says where between the two it was;
outside of them it is not used.
"""

from dataclasses import dataclass

# A gap between RunPod's times and the bounds beyond this is named: a retry, a restarted worker, a clock that stepped.
INCONSISTENT_MS = 100.0


@dataclass(frozen=True, slots=True)
class PolledTotal:
    """Milliseconds since the job was sent."""

    corrected_ms: float
    lower_ms: float
    upper_ms: float
    inconsistent: bool


def correct_total(
    *,
    lower_ms: float,
    upper_ms: float,
    rtt_min_ms: float | None,
    delay_ms: float | None,
    exec_ms: float | None,
    held: bool = False,
) -> PolledTotal:
    """The total of a polled job.

    `lower_ms`: send time of the last poll that found it unfinished (or when it was accepted). `upper_ms`: when the
    final reply was received. `held`: that reply came out of a long poll that was already waiting when the job ended, so
    `upper_ms` is itself the moment; nothing is to be corrected.
    """
    lower_ms = min(lower_ms, upper_ms)
    if delay_ms is None or exec_ms is None:
        return PolledTotal(upper_ms, lower_ms, upper_ms, inconsistent=False)
    estimate = (rtt_min_ms or 0.0) + delay_ms + exec_ms
    inconsistent = estimate < lower_ms - INCONSISTENT_MS or estimate > upper_ms + INCONSISTENT_MS
    if held:
        return PolledTotal(upper_ms, lower_ms, upper_ms, inconsistent)
    return PolledTotal(min(max(estimate, lower_ms), upper_ms), lower_ms, upper_ms, inconsistent)
