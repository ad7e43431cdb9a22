"""`python -m benchmarks.tolist MAPS --port PORT`: what one would write first, maps as lists of numbers in JSON."""

import argparse

import numpy as np
import uvicorn
from fastapi import FastAPI


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("maps", help="of a file of numpy")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    maps = np.load(options.maps)
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict:
        return {}

    @app.get("/maps")
    def show() -> dict:
        # The weights are there already: nothing is computed but their JSON.
        return {"maps": maps.tolist()}

    uvicorn.run(app, port=options.port, access_log=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
