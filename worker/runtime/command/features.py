"""The verb features: what this runtime can on this machine (OCI features.md)."""

from __future__ import annotations

import json
import sys

from worker.runtime import features as runtime_features
from worker.runtime.command.arguments import Arguments
from worker.runtime.command.report import Log


def features(arguments: Arguments, log: Log) -> int:
    sys.stdout.write(json.dumps(runtime_features.document(runtime_features.facts()), indent=2) + "\n")
    return 0
