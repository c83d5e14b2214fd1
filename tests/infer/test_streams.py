"""The responses of a decoupled model, followed while it runs."""

from tests.infer.kit import file_of, inferred, sent, tensor
from tests.service import Service
from tests.streams.follower import Follower


async def test_responses_are_followed_as_they_come_and_a_cut_stream_goes_on(service: Service) -> None:
    id_ = await sent(service, "count", tensor("n", "INT32", 12), tensor("pause_ms", "INT32", 100), stream=True)
    follower = await Follower(id_).follow(service, most=2)
    # Were nothing sent before the end, the second message would be the last.
    assert follower.result is None
    assert follower.outputs()[0] == {
        "name": "i", "datatype": "INT32", "shape": [1], "response": 0, "data": [0], "files": None,
    }  # fmt: skip
    result = (await follower.follow(service)).result
    assert result is not None
    assert (result["status"], follower.error) == ("completed", None)
    assert follower.outputs() == result["outputs"]
    assert [output["data"] for output in follower.outputs()[::2]] == [[n] for n in range(12)]
    # A file is named at once, and read once the result is final.
    blob = follower.outputs()[1]
    assert blob["files"][1]["path"] == f"/results/{id_}/outputs/blob?element=1"
    assert (await file_of(service, blob, 1)).content == b"\xff0"


async def test_who_comes_after_the_end_gets_all_of_it(service: Service) -> None:
    result = await inferred(service, "count", tensor("n", "INT32", 2))
    follower = await Follower(result["id"]).follow(service)
    assert follower.outputs() == result["outputs"]
    assert follower.result == result
