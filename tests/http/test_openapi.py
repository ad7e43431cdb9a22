"""/docs and /openapi.json: every route is there, with examples, and the examples work when posted."""

import pytest
from pydantic import TypeAdapter

from attnserve.service import question_schemas, schemas
from attnserve.service.captures.schemas import CaptureAnswer, CaptureBody
from attnserve.service.checkpoints.schemas import CheckpointBody, CheckpointList, Uploaded
from attnserve.service.exports.schemas import ExportJob, ExportList
from attnserve.service.problems import Problem
from attnserve.service.question import QUANTITIES

pytestmark = pytest.mark.http

ROUTES = {
    "/v1/checkpoints": ["get"],
    "/v1/checkpoints/{name}": ["delete", "get"],
    "/v1/checkpoints/{name}/{file}": ["delete", "put"],
    "/v1/captures/{capture}": ["delete", "get"],
    "/v1/captures/{capture}/attention": ["get"],
    "/v1/captures/{capture}/qk/{layer}/{head}": ["get"],
    "/v1/captures/{capture}/rows/{layer}/{head}": ["get"],
    "/v1/captures/{capture}/thumbnails": ["get"],
    "/v1/captures/{capture}/tiles/{layer}/{head}/{zoom}/{y}/{x}": ["get"],
    "/v1/exports": ["get", "post"],
    "/v1/exports/{id}": ["delete", "get"],
    "/v1/exports/{id}/events": ["get"],
    "/v1/models": ["get"],
    "/v1/models/{model}": ["get"],
    "/v1/models/{model}/attention": ["post"],
    "/v1/models/{model}/captures": ["post"],
    "/v1/models/{model}/predict": ["post"],
    "/v1/models/{model}/versions/{version}": ["get"],
    "/v1/models/{model}/versions/{version}/attention": ["post"],
    "/v1/models/{model}/versions/{version}/captures": ["post"],
    "/v1/models/{model}/versions/{version}/predict": ["post"],
    "/healthz": ["get"],
    "/metrics": ["get"],
    "/readyz": ["get"],
    "/v2": ["get"],
    "/v2/health/live": ["get"],
    "/v2/health/ready": ["get"],
    "/v2/repository/index": ["post"],
    "/v2/repository/models/{model}/load": ["post"],
    "/v2/repository/models/{model}/unload": ["post"],
    "/v2/models/stats": ["get"],
    **{
        f"/v2/models/{{model}}{version}{end}": ["post" if end == "/infer" else "get"]
        for version in ("", "/versions/{version}")
        for end in ("", "/config", "/ready", "/infer", "/stats")
    },
}


@pytest.fixture(scope="module")
def document(server):
    response = server.client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def fields_of(answer):
    """Of an object, or of the first row."""
    return set(answer[0] if isinstance(answer, list) else answer)


def test_examples_of_the_open_inference_protocol_have_the_fields_of_answers(server, document):
    for path, method, operation in operations(document):
        if path.startswith("/v2") and method == "get":
            shown = operation["responses"]["200"]["content"]["application/json"]["example"]
            found = server.client.get(path.format(model="tiny", version=1)).json()
            assert fields_of(found) == fields_of(shown), path


def test_docs_page(server):
    response = server.client.get("/docs")
    assert response.status_code == 200
    assert "/openapi.json" in response.text


def test_every_route_is_described(document):
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == ROUTES
    for path, method, operation in operations(document):
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path
        assert ("requestBody" in operation) == (method in ("post", "put"))


def test_every_answer_has_an_example_that_fits_its_schema(document):
    models = {
        "/v1/checkpoints": CheckpointList,
        "/v1/checkpoints/{name}": CheckpointBody,
        "/v1/checkpoints/{name}/{file}": Uploaded,
        "/v1/captures/{capture}": CaptureAnswer,
        "/v1/models/{model}/captures": CaptureAnswer,
        "/v1/models/{model}/versions/{version}/captures": CaptureAnswer,
        "/v1/exports": ExportList,
        "/v1/exports/{id}": ExportJob,
        "/v1/models": schemas.ModelList,
        "/v1/models/{model}": schemas.ModelBody,
        "/v1/models/{model}/versions/{version}": schemas.ModelBody,
        "/healthz": dict[str, str],
        "/readyz": dict[str, str],
    }
    for path, method, operation in operations(document):
        if path == "/metrics" or path.startswith("/v2") or path.endswith("/events"):
            continue
        if method == "delete" and "204" in operation["responses"]:
            assert "content" not in operation["responses"]["204"]
            continue
        if path.startswith("/v1/captures/{capture}/"):
            # Of arrays, by name; tests/service/captures/test_view.py has their fields.
            assert operation["responses"]["200"]["content"]["application/json"]["example"]["capture"]
            continue
        status = next(status for status in ("200", "201", "202") if status in operation["responses"])
        content = operation["responses"][status]["content"]["application/json"]
        model = ExportJob if (path, method) == ("/v1/exports", "post") else models.get(path, schemas.PredictAnswer)
        TypeAdapter(model).validate_python(content["example"], strict=True)


def test_every_problem_has_an_example_that_fits_its_schema(document):
    for path, method, operation in operations(document):
        statuses = {
            status for status in operation["responses"] if status not in ("200", "201", "202", "204", "default")
        }
        # Heads are read before it is known what they ask for.
        assert "431" in statuses
        statuses -= {"431"}
        if path == "/v1/exports" and method == "post":
            assert statuses == {"400", "401", "403", "409", "413", "415", "422", "501", "503"}
        elif method == "post":
            expected = {"400", "404", "406", "413", "415", "422", "429", "500", "503", "504"}
            if path.startswith("/v2"):
                expected -= {"406"} if path.endswith("/infer") else expected - {"400", "413", "415"}
            if path.endswith("load"):
                expected |= {"404", "409"}
            if path.endswith("captures"):
                expected |= {"409"}
            expected |= {"401"} if path == "/v2/repository/index" else {"401", "403"}
            assert statuses == expected, path
        for status in statuses | {"431"}:
            (media_type,) = operation["responses"][status]["content"]
            assert media_type == "application/problem+json"
            example = operation["responses"][status]["content"][media_type]["example"]
            assert schemas.ProblemBody.model_validate(example, strict=True).status == int(status)
    assert "HTTPValidationError" not in str(document)


def test_references_lead_somewhere(document):
    def check(value):
        if isinstance(value, dict):
            if "$ref" in value:
                place = document
                for part in value["$ref"].removeprefix("#/").split("/"):
                    place = place[part]
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)

    check(document)


def test_examples_of_requests_work(server, document):
    num_examples = 0
    for path, _, operation in operations(document):
        # Those of loading, unloading and exports change what is served: tests/http/test_repository.py and
        # tests/service/exports/test_routes.py. Files have no examples.
        if "requestBody" not in operation or path.endswith(("load", "{file}", "exports")):
            continue
        content = operation["requestBody"]["content"]["application/json"]
        assert content["examples"]
        for example in content["examples"].values():
            response = server.client.post(path.format(model="tiny", version=1), json=example["value"])
            assert response.status_code == (201 if path.endswith("captures") else 200), response.text
            num_examples += 1
            if path.endswith("captures"):
                CaptureAnswer.model_validate_json(response.content, strict=True)
                continue
            if path.startswith("/v2"):
                shown = operation["responses"]["200"]["content"]["application/json"]["example"]
                found = response.json()
                assert fields_of(found) - {"id"} == fields_of(shown)
                continue
            answer = schemas.ContinueAnswer if "continue" in example["value"] else schemas.PredictAnswer
            answer.model_validate_json(response.content, strict=True)
    assert num_examples >= 8


def test_answers_have_no_field_that_the_schema_lacks(server):
    body = {"sequences": [[1, 2]]}
    questions: list[dict] = [{"quantity": quantity} for quantity in QUANTITIES]
    questions += [{"quantity": "weights", "top_keys": 1, "pairs": [[0, 0]], "keys": [0]}, {"diagnostics": "all"}]
    compared = {"compare": {"sequences": [[3, 4]]}, "ablate": [[0, 0]], "diagnostics": ["importance", "collapse"]}
    answers = [server.ask("predict", {**body, "attention": question}) for question in (*questions, compared)]
    assert set(answers[-1]["ablation"]["changes"][0]) == set(question_schemas.Change.model_fields)
    assert set(answers[-1]["comparison"]) <= set(question_schemas.Comparison.model_fields)
    for answer in answers:
        assert set(answer) <= set(schemas.PredictAnswer.model_fields)
        for entry in answer.get("diagnostics", []):
            assert set(entry) <= set(question_schemas.Diagnostics.model_fields)
        for entry in answer.get("maps", []):
            assert set(entry) <= set(question_schemas.Map.model_fields)


@pytest.mark.parametrize(
    ("route", "body", "schema"),
    [
        ("predict", {"": 0}, schemas.Predict),
        ("attention", {"": 0}, schemas.AttentionBody),
        ("predict", {"sequences": [[1]], "attention": {"": 0}}, schemas.AttentionFields),
        ("captures", {"": 0}, CaptureBody),
    ],
)
def test_schemas_and_parser_know_the_same_fields(server, route, body, schema):
    # Requests are parsed by hand; the schema is only shown.
    (fault,) = server.post(route, body).json()["errors"]
    known = fault["message"].removeprefix("unknown field; expected one of ").split(", ")
    names = {field.alias or name for name, field in schema.model_fields.items()}
    assert set(known) == names


def test_every_problem_is_documented(document):
    def subclasses(kind):
        for subclass in kind.__subclasses__():
            yield subclass
            yield from subclasses(subclass)

    paths = document["paths"]
    answers = {
        **paths["/v1/models/{model}/predict"]["post"]["responses"],
        **paths["/v2/repository/models/{model}/load"]["post"]["responses"],
        **paths["/v1/checkpoints/{name}/{file}"]["put"]["responses"],
        **paths["/v1/exports"]["post"]["responses"],
        **paths["/v1/captures/{capture}"]["get"]["responses"],
    }
    documented = {int(status) for status in answers if status not in ("200", "201", "202", "default")}
    assert {problem.status for problem in subclasses(Problem)} == documented
