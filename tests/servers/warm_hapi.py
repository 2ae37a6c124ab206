"""Makes a fresh HAPI server load its validation rules, and checks that it is as strict as the tests expect.

Sends one transaction that no strict server may take: nothing is stored. Standard library only.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

from servers import env

REQUEST_S = 120.0


def main() -> int:
    """Exit 0 if the server refuses the bundle with 422."""
    patient = "urn:uuid:6f6f1d2a-0f5c-4b7e-9a43-0d1c2b3a4f50"
    resources = [
        ("Patient", {"resourceType": "Patient"}),
        # neither a code nor a status: the definitions of R4 demand both
        ("DiagnosticReport", {"resourceType": "DiagnosticReport", "subject": {"reference": patient}}),
        ("Observation", {"resourceType": "Observation", "subject": {"reference": patient}}),
    ]
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [{"resource": body, "request": {"method": "POST", "url": kind}} for kind, body in resources],
    }
    request = urllib.request.Request(
        env.hapi_url(), json.dumps(bundle).encode(), {"Content-Type": "application/fhir+json"}, method="POST"
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=REQUEST_S) as answer:
            print(f"the server took an invalid bundle: {answer.status}")
    except urllib.error.HTTPError as refusal:
        if refusal.code == 422:
            return 0
        print(f"expected 422, got {refusal.code}: {refusal.read(2000).decode(errors='replace')}")
    except OSError as problem:
        print(f"no answer: {problem}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
