"""Statuses and results: the values that users match on, and their JSON."""

import dataclasses
import json
import pickle
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from action_retrier import Canceled, Completed, Failed, InProgress, RunResult, RunStatus, Success
from action_retrier.results import from_json, to_json

SHAPES: list[tuple[Any, dict[str, Any]]] = [
    (InProgress(), {"type": "inProgress"}),
    (
        Completed(result=Success(return_value={"total": [1, None]})),
        {"type": "completed", "result": {"type": "success", "returnValue": {"total": [1, None]}}},
    ),
    (
        Completed(result=Failed(error="no", error_type="builtins.Nothing")),
        {"type": "completed", "result": {"type": "failed", "error": "no", "errorType": "builtins.Nothing"}},
    ),
    (Completed(result=Canceled()), {"type": "completed", "result": {"type": "canceled"}}),
]
shapes = pytest.mark.parametrize(("status", "shape"), SHAPES, ids=["inProgress", "success", "failed", "canceled"])
COMPLETED = [(status.result, shape["result"]) for status, shape in SHAPES[1:]]
results = pytest.mark.parametrize(("result", "shape"), COMPLETED, ids=["success", "failed", "canceled"])

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=12,
)


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "tag"),
    [
        (InProgress, "inProgress"),
        (Completed, "completed"),
        (Success, "success"),
        (Failed, "failed"),
        (Canceled, "canceled"),
    ],
)
def test_type_fields_are_literals(cls, tag):
    """`type` fields are `Literal`s."""
    assert get_type_hints(cls)["type"] == Literal[tag]


@pytest.mark.parametrize(("status", "_"), SHAPES)
def test_statuses_are_frozen_dataclasses(status, _):
    """`RunStatus = InProgress | Completed`: frozen dataclasses."""
    assert dataclasses.is_dataclass(status)
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.type = "other"


@pytest.mark.parametrize(("result", "_"), COMPLETED)
def test_results_are_frozen_dataclasses(result, _):
    """`RunResult = Success | Failed | Canceled`."""
    assert dataclasses.is_dataclass(result)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.type = "other"


def test_the_unions_hold_what_they_say():
    """`RunStatus = InProgress | Completed`, `RunResult = Success | Failed | Canceled`."""
    assert members(RunStatus) == {InProgress, Completed}
    assert members(RunResult) == {Success, Failed, Canceled}


def members(union: Any) -> set[type]:
    """The classes of a union, which may be annotated."""
    return set(get_args(get_args(union)[0] if get_origin(union) is Annotated else union))


@pytest.mark.parametrize("cls", [Success, Failed, Canceled, Completed, InProgress])
def test_the_type_of_a_class_is_its_own(cls):
    """It tells the classes apart as JSON, so none is made with another's."""
    fields = {field.name: "x" for field in dataclasses.fields(cls) if field.name != "type"}
    assert cls(**fields, type=cls(**fields).type).type == cls(**fields).type
    with pytest.raises(ValueError, match=f"the type of a {cls.__name__} is '{cls(**fields).type}'"):
        cls(**fields, type="other")


def test_equal_values_are_equal():
    """Values: two statuses that say the same are the same."""
    assert InProgress() == InProgress()
    assert Completed(result=Success(return_value=[1])) == Completed(result=Success(return_value=[1]))
    assert Success(return_value=1) != Success(return_value=2)
    assert Failed(error="a", error_type="b") == Failed(error="a", error_type="b")
    assert Canceled() != InProgress()


@shapes
def test_statuses_survive_pickle(status, shape):
    """They are values to be passed on."""
    assert pickle.loads(pickle.dumps(status)) == status  # noqa: S301 - our own


def describe(status: RunStatus) -> str:
    match status:
        case InProgress():
            return "in progress"
        case Completed(result=Success(return_value=value)):
            return f"success: {value}"
        case Completed(result=Failed(error=error, error_type="ValueError")):
            return f"value error: {error}"
        case Completed(result=Failed(error=error)):
            return f"failed: {error}"
        case Completed(result=Canceled()):
            return "canceled"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (InProgress(), "in progress"),
        (Completed(result=Success(return_value=7)), "success: 7"),
        (Completed(result=Failed(error="no", error_type="ValueError")), "value error: no"),
        (Completed(result=Failed(error="no", error_type="KeyError")), "failed: no"),
        (Completed(result=Canceled()), "canceled"),
    ],
)
def test_they_are_made_for_match(status, text):
    """... made for `match`."""
    assert describe(status) == text


@pytest.mark.parametrize(("status", "shape"), SHAPES)
def test_the_type_field_may_be_matched_too(status, shape):
    """One may match on `type` as one does in JSON."""
    match status:
        case InProgress(type="inProgress") | Completed(type="completed"):
            assert status.type == shape["type"]
        case _:
            pytest.fail("no case matched")


# -- JSON --------------------------------------------------------------------------------------------------------------


@shapes
def test_a_status_has_its_camel_case_shape(status, shape):
    """`{"type": "completed", "result": {"type": "success", "returnValue": ...}}`."""
    assert json.loads(to_json(status)) == shape


@results
def test_a_result_has_its_camel_case_shape(result, shape):
    """`{"type": "success", "returnValue": ...}`."""
    assert json.loads(to_json(result)) == shape


@shapes
def test_a_status_is_read_back(status, shape):
    """`from_json(text)` is the reverse of `to_json`."""
    assert from_json(to_json(status)) == status
    assert from_json(json.dumps(shape)) == status


@results
def test_a_result_is_read_back(result, shape):
    """`from_json(text, RunResult)`."""
    assert from_json(to_json(result), RunResult) == result
    assert from_json(json.dumps(shape), RunResult) == result


@shapes
def test_pydantic_gives_the_same_shape(status, shape):
    """As JSON (`to_json`/`from_json`, pydantic ...) they have the camelCase shape everywhere."""
    adapter = TypeAdapter(RunStatus)
    assert json.loads(adapter.dump_json(status)) == shape
    assert json.loads(adapter.dump_json(status, by_alias=True)) == shape
    assert adapter.dump_python(status, mode="json") == shape
    assert adapter.validate_python(shape) == status
    assert adapter.validate_json(json.dumps(shape)) == status


@results
def test_pydantic_gives_the_same_shape_of_a_result(result, shape):
    """`TypeAdapter(RunResult)`."""
    adapter = TypeAdapter(RunResult)
    assert json.loads(adapter.dump_json(result)) == shape
    assert adapter.validate_python(shape) == result


class Answer(BaseModel):
    """A model of a user's web service."""

    order_id: int
    status: RunStatus
    last: RunResult | None = None


@shapes
def test_a_model_that_holds_a_status_gives_the_same_shape(status, shape):
    """... and so FastAPI: a response model that holds one."""
    answer = Answer(order_id=7, status=status)
    expected = {"order_id": 7, "status": shape, "last": None}
    assert json.loads(answer.model_dump_json()) == expected
    assert json.loads(answer.model_dump_json(by_alias=True)) == expected
    assert Answer.model_validate(expected) == answer
    assert Answer.model_validate_json(json.dumps(expected)) == answer


def test_pydantic_takes_the_values_themselves():
    """What is a status already needs no conversion."""
    status = Completed(result=Success(return_value={"a": 1}))
    assert TypeAdapter(RunStatus).validate_python(status) == status


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_the_json_schema_speaks_camel_case(mode):
    """An OpenAPI document shows the same names."""
    schema = TypeAdapter(RunStatus).json_schema(mode=mode)
    names = {name for definition in schema["$defs"].values() for name in definition["properties"]}
    assert names == {"type", "result", "returnValue", "error", "errorType"}


def test_the_users_own_keys_are_left_alone():
    """Only our names are camelCase: a return value is the user's."""
    value = {"return_value": 1, "error_type": {"some_key": 2}, "type": "inProgress", "returnValue": 3}
    status = Completed(result=Success(return_value=value))
    assert json.loads(to_json(status))["result"]["returnValue"] == value
    assert from_json(to_json(status)) == status


@given(JSON)
def test_any_json_value_comes_back_as_it_was(value):
    """`Success.return_value`: JSON value."""
    status = Completed(result=Success(return_value=value))
    assert from_json(to_json(status)) == status
    assert json.loads(to_json(status))["result"]["returnValue"] == value


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_error_text_comes_back_as_it_was(error, error_type):
    """`Failed.error: str`, `Failed.error_type: str`."""
    status = Completed(result=Failed(error=error, error_type=error_type))
    assert from_json(to_json(status)) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "null",
        "[]",
        "{}",
        '{"type": "other"}',
        '{"type": "completed"}',
        '{"type": "completed", "result": {"type": "inProgress"}}',
        '{"type": "completed", "result": {"type": "failed", "error": 5, "errorType": "x"}}',
        '{"type": "success", "returnValue": 1}',
    ],
)
def test_what_is_no_status_is_a_value_error(text):
    """`from_json` reads statuses, and nothing else."""
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_a_wrong_shape_is_a_validation_error_of_pydantic():
    """Inside a model a wrong status is the user's client's mistake, told as such."""
    with pytest.raises(ValidationError):
        Answer.model_validate({"order_id": 7, "status": {"type": "completed", "result": {"type": "done"}}})


async def test_what_a_retrier_returns_has_the_documented_shape(api):
    """... the seed's camelCase shape everywhere: from a real run, too."""
    done = api.scripted({"charge_id": "ch_7"})
    run_id = await api.run(api.app, done.action)
    assert json.loads(to_json(await api.status(api.app, run_id))) == {"type": "inProgress"}
    async with api.worker() as worker:
        await worker.until_idle()
    assert json.loads(to_json(await api.status(api.app, run_id))) == {
        "type": "completed",
        "result": {"type": "success", "returnValue": {"charge_id": "ch_7"}},
    }
    assert json.loads(to_json(await api.wait(api.app, run_id))) == {
        "type": "success",
        "returnValue": {"charge_id": "ch_7"},
    }
