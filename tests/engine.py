"""What an engine does at the moment, from its server's own metrics."""

import httpx

from tests.servers import RunningTriton


async def _total(triton: RunningTriton, metric: str, model: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(triton.metrics_url)).text
    lines = [line for line in text.splitlines() if line.startswith(metric) and f'"{model}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def busy(triton: RunningTriton, model: str) -> float:
    """How many requests it works on."""
    return await _total(triton, "sim_requests_running", model)


async def generated(triton: RunningTriton, model: str) -> float:
    """How many tokens it has generated since it was loaded."""
    return await _total(triton, "vllm:generation_tokens_total", model)
