"""What /openapi.json promises and forbids, as its readers see it."""

import pytest

pytestmark = pytest.mark.http


def test_bodies_that_may_be_left_out_are_not_required(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    bodies = {path: item["post"]["requestBody"] for path, item in paths.items() if "post" in item}
    optional = {path for path, body in bodies.items() if not body["required"]}
    assert optional == {path for path in bodies if path.startswith("/v2/repository/")}
    assert server.client.post("/v2/repository/index").status_code == 200
