"""Known vulnerabilities in the pinned set, by pip-audit; a package that could not be asked about is not a clean one.

    python scripts/audit.py --pip-audit .venv-audit/bin/pip-audit

Exit codes: 0 every pinned package was asked about and none is known to be vulnerable; 1 some are; 3 no answer about
some or all of them (no network, or a mirror that knows no advisories), so that the audit says nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3


def main() -> int:
    """Ask, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pip-audit", default="pip-audit", help="the program")
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS, help="the pinned set")
    asked = parser.parse_args()
    command = [asked.pip_audit, "--requirement", str(asked.constraints), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"audit: NOT DONE, pip-audit cannot be run: {error}")
        return UNKNOWN
    try:
        packages: list[dict[str, Any]] = json.loads(found.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = found.stderr.strip().splitlines() or [f"exit code {found.returncode}"]
        print(f"audit: NOT DONE, pip-audit has no answer: {said[-1][:200]}")
        return UNKNOWN
    unknown = [p["name"] for p in packages if "skip_reason" in p]
    known = [(p, v) for p in packages for v in p.get("vulns", [])]
    for package, flaw in known:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {flaw['id']}, mended in {mended}")
    if unknown or not packages:
        print(f"audit: NOT DONE for {len(unknown)} of {len(packages)} packages ({', '.join(unknown[:5])}): no answer")
    if known:
        return VULNERABLE
    if unknown or not packages:
        return UNKNOWN
    print(f"audit: no known vulnerability in {len(packages)} packages")
    return CLEAN


if __name__ == "__main__":
    raise SystemExit(main())
