"""FastAPI and uvicorn by hand: a body, one run, an answer.

One thread runs the model: on one core, a run each in FastAPI's 40 threads would only take turns for it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.model import open_session, port, predict_one

app = FastAPI()
session = open_session()
thread = ThreadPoolExecutor(1)


@app.post("/predict")
async def predict(request: Request) -> Response:
    body = orjson.loads(await request.body())
    loop = asyncio.get_running_loop()
    answer = await loop.run_in_executor(thread, predict_one, session, body["sequence"])
    return Response(orjson.dumps(answer), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port(), access_log=False, log_level="warning")
