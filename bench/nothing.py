"""A FastAPI route that does nothing, served as the API is: python -m bench.nothing PORT"""

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.post("/nothing", status_code=202)
async def nothing() -> dict[str, str]:
    return {"status": "pending"}


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
