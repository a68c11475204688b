"""Statuses, results and runs as JSON: the same camelCase shape for HTTP, pydantic and the command line."""

import asyncio
import json

from pydantic import BaseModel

from action_retrier import ActionRetrier, App, Completed, InProgress, RunStatus, Success, from_json, to_json

app = App("sqlite:///as_json.db")
retrier = ActionRetrier(app)


@app.action
async def answer() -> str:
    return "forty-two"


class Reply(BaseModel):
    """What an endpoint would return; FastAPI goes through pydantic in the same way."""

    status: RunStatus


async def main() -> None:
    run_id = await retrier.run(app, answer)
    assert to_json(await retrier.status(app, run_id)) == '{"type":"inProgress"}'

    async with app.worker():
        await retrier.wait(app, run_id)
    status = await retrier.status(app, run_id)
    match status:
        case Completed(Success(value)):
            assert value == "forty-two"
        case Completed(result):
            raise AssertionError(result)
        case InProgress():
            raise AssertionError("wait has returned")

    text = to_json(status)
    assert json.loads(text) == {"type": "completed", "result": {"type": "success", "returnValue": "forty-two"}}
    assert from_json(text) == status
    assert Reply.model_validate_json(Reply(status=status).model_dump_json()).status == status
    print(text)


if __name__ == "__main__":
    asyncio.run(main())
