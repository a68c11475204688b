"""What all of a soak comes to: its verdict, for people and for programs."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass, field
from typing import Any

from .evidence import Evidence
from .names import long
from .writes import Enumeration


@dataclass
class Report:
    """
    Collects it.

    Attributes:
        seed: Of the plans.
        requested_s: How long faults were to be injected, on all databases together.
        rate: How many runs were to be started in a second.
        began: The date and the time.
        not_tried: What is not part of it, and why not.
        is_interrupted: Somebody has stopped it.
    """

    seed: int
    requested_s: float
    rate: float
    began: str
    not_tried: list[str] = field(default_factory=list)
    is_interrupted: bool = False
    writes: Enumeration | None = None
    soaks: list[Evidence] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all that was tried went well."""
        return not (self.writes and self.writes.failed) and all(evidence.is_clean for evidence in self.soaks)

    @property
    def verdict(self) -> str:
        """What it comes to, in a line."""
        parts = ["nothing was lost"] if self.is_clean else [f"NOT CLEAN: {', '.join(self._problems())}: see above"]
        if self.is_interrupted:
            done_s = sum(
                evidence.requested_s if evidence.stopped_s is None else min(evidence.stopped_s, evidence.requested_s)
                for evidence in self.soaks
            )
            parts.append(f"stopped after {long(done_s)} of {long(self.requested_s)}")
        not_tried = [*self.not_tried, *(one for evidence in self.soaks for one in evidence.not_tried)]
        if not_tried:
            parts.append(f"NOT tried: {'; '.join(not_tried)}")
        return "; ".join(parts)

    def _problems(self) -> list[str]:
        counts = {
            "crash points failed": len(self.writes.failed) if self.writes else 0,
            "promises broken": sum(len(evidence.broken) for evidence in self.soaks),
            "unexpected": sum(len(evidence.unexpected) for evidence in self.soaks),
        }
        problems = [f"{count:,} {what}" for what, count in counts.items() if count]
        missing = [f"{one} ({evidence.kind})" for evidence in self.soaks for one in evidence.missing]
        return problems + ([f"injected too little ({', '.join(missing)})"] if missing else [])

    def as_json(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            "verdict": self.verdict,
            "is_clean": self.is_clean,
            "is_interrupted": self.is_interrupted,
            "not_tried": self.not_tried,
            "began": self.began,
            "library_version": importlib.metadata.version("action-retrier"),
            "machine": {
                "cores": os.cpu_count(),
                "python": f"{platform.python_implementation()} {platform.python_version()}",
                "kernel": f"{platform.system()} {platform.release()}",
                "architecture": platform.machine(),
            },
            "seed": self.seed,
            "requested_duration_s": self.requested_s,
            "rate": self.rate,
            "crash_points": self.writes.as_json() if self.writes else None,
            "soaks": [evidence.as_json() for evidence in self.soaks],
        }
