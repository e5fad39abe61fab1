"""Whether the server beside this process answers: for containers. Exit code 0 or 1.

python -m fedpdpo.server.watch.health, with FEDPDPO_SERVER_DASHBOARD_PORT as the server has it.
"""

import http.client
import os
import ssl
import sys

_TIMEOUT_S = 3.0


def main() -> int:
    """Ask this machine's page; gives the exit code."""
    port = int(os.environ.get("FEDPDPO_SERVER_DASHBOARD_PORT", "8080"))
    itself = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    itself.check_hostname, itself.verify_mode = False, ssl.CERT_NONE  # nothing is sent, or trusted
    for connection in (
        http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S),
        http.client.HTTPSConnection("127.0.0.1", port, timeout=_TIMEOUT_S, context=itself),
    ):
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return 0
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return 1


if __name__ == "__main__":
    sys.exit(main())
