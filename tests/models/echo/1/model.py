import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(each.name(), each.as_numpy()) for each in request.inputs()])
            for request in requests
        ]
