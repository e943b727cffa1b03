"""What the image's HEALTHCHECK runs: is the process in this container alive, whichever of the three it is?

`python -m deploy.image.healthy` asks /livez on the ports of learner, predictor and worker, or on those that are given,
and ends with 0 where one of them says 200, else with 1 and what it heard in one line.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

USUAL_PORTS = (9095, 9096, 9097)
# Three ports within the HEALTHCHECK's six seconds; the answer comes from a thread that waits for nothing.
_ANSWER_SECONDS = 1.5
# Not through a proxy, which Docker may put into a container's environment: it cannot see this container's 127.0.0.1.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def unhealthy(ports: Sequence[int]) -> str | None:
    """None: one of them is alive. Else what was heard, of each that is there."""
    heard = []
    for port in ports:
        try:
            with _DIRECT.open(f"http://127.0.0.1:{port}/livez", timeout=_ANSWER_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            heard.append(f"port {port} answers {error.code}: {error.read(200).decode(errors='replace').strip()}")
        except OSError:
            continue  # one of the other processes would listen there
    return "; ".join(heard) or f"nothing listens on {', '.join(map(str, ports))}"


if __name__ == "__main__":
    why = unhealthy([int(port) for port in sys.argv[1:]] or USUAL_PORTS)
    sys.exit(why)  # None: 0; a text: to stderr, and 1
