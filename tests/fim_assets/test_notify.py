"""The failure sensor, with a real HTTP receiver."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import dagster as dg

from fim_assets.automation.notify import failure_sensor
from fim_assets.instance import PipelineInstance
from fim_core.config.workflow import NotifyConfig


@dg.op
def breaks() -> None:
    raise RuntimeError("broken on purpose")


@dg.job
def nightly() -> None:
    breaks()


class Receiver(BaseHTTPRequestHandler):
    received: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        Receiver.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output quiet."""


def test_a_failed_run_of_the_instance_is_posted_to_the_webhook() -> None:
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with dg.instance_for_test() as instance:
        result = nightly.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failures",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=result.get_run_failure_event(),
        ).for_run_failure()
        config = NotifyConfig(webhook=f"http://127.0.0.1:{server.server_port}/hook")
        for jobs in ({"nightly"}, {"another"}):
            failure_sensor(PipelineInstance("tiny.yaml"), jobs, config)(context)
    server.shutdown()
    [message] = Receiver.received
    assert message["job"] == "nightly"
    assert message["run_id"] == result.run_id
    assert "failed" in message["text"]
