"""What a job of the peers is: the same request body as a ticket of the service, with the prompt in it."""

from pydantic import BaseModel


class Parameters(BaseModel):
    max_tokens: int = 1


class Job(BaseModel):
    prompt: str = "ping"
    parameters: Parameters = Parameters()
