"""Errors a user can meet: each has a stable code, an HTTP status and a sentence that says what to do."""

from typing import Any, ClassVar


class AppError(Exception):
    """Base of all errors the API renders.

    `detail` is shown to the user as it stands: no path, no secret, no trace.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.extra = extra


class InvalidRequest(AppError):
    code = "invalid_request"
    status = 422
    title = "The request does not have the form this route takes"


def invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}" if field else message, errors=[{"field": field, "message": message}])


class MalformedBody(AppError):
    code = "malformed_body"
    status = 400
    title = "The body is not JSON"


class MalformedPath(AppError):
    code = "malformed_path"
    status = 400
    title = "The path holds control characters"


class UnsupportedMediaType(AppError):
    code = "unsupported_media_type"
    status = 415
    title = "The body is not declared as JSON"


class BodyTooLarge(AppError):
    code = "body_too_large"
    status = 413
    title = "The body is too large"


class BodyTooSlow(AppError):
    code = "body_too_slow"
    status = 408
    title = "The body came too slowly"


class SearchUnavailable(AppError):
    code = "search_unavailable"
    status = 503
    title = "Nothing can be searched by meaning now"


class InvalidParameters(AppError):
    code = "invalid_parameters"
    status = 422
    title = "The sampling parameters are not valid"


class InvalidInputs(InvalidRequest):
    code = "invalid_inputs"
    title = "The inputs are not those of the model"


class NotFound(AppError):
    code = "not_found"
    status = 404
    title = "There is nothing at this address"


class MethodNotAllowed(AppError):
    code = "method_not_allowed"
    status = 405
    title = "This address does not take that method"


class ContextNotFound(NotFound):
    code = "context_not_found"
    title = "No such context"


class ResultNotFound(NotFound):
    code = "result_not_found"
    title = "No such result"


class OutputNotFound(NotFound):
    code = "output_not_found"
    title = "No such output among the files of the result"


class DeliveryNotFound(NotFound):
    code = "delivery_not_found"
    title = "No such delivery of a webhook"


class ModelNotFound(NotFound):
    code = "model_not_found"
    title = "No such model"


class ModelNotReady(AppError):
    code = "model_not_ready"
    status = 503
    title = "No server has the model ready"


class ServerNotFound(NotFound):
    code = "server_not_found"
    title = "No such server"


class ServerExists(AppError):
    code = "server_exists"
    status = 409
    title = "There is such a server already"


class ServerListedElsewhere(AppError):
    code = "server_listed_elsewhere"
    status = 409
    title = "The server is listed in the environment or in a file"


class ServerUnreachable(AppError):
    code = "server_unreachable"
    status = 503
    title = "The server cannot be reached"


class ModelOrderRefused(AppError):
    code = "model_order_refused"
    status = 409
    title = "The server loads and unloads no models by request"


class ModelNotLoaded(AppError):
    code = "model_not_loaded"
    status = 409
    title = "The model could not be loaded or unloaded"


class SettingNotFound(NotFound):
    code = "setting_not_found"
    title = "No such setting"


class SettingFixed(AppError):
    code = "setting_fixed"
    status = 409
    title = "The setting changes with a start only"


class HostNotFound(NotFound):
    code = "host_not_found"
    title = "No such host"


class HostEnded(AppError):
    code = "host_ended"
    status = 409
    title = "The host has ended"


class AdapterNotFound(InvalidRequest):
    code = "lora_not_found"
    title = "The model has no such adapter"


class FileNotFound(NotFound):
    code = "file_not_found"
    title = "No such file"


class UploadNotFound(NotFound):
    code = "upload_not_found"
    title = "No such upload"


class PartNotFound(NotFound):
    code = "part_not_found"
    title = "The upload has no such part"


class UploadEnded(AppError):
    code = "upload_ended"
    status = 400
    title = "The upload has ended"


class BatchNotFound(NotFound):
    code = "batch_not_found"
    title = "No such batch"


class ConversationNotFound(NotFound):
    code = "conversation_not_found"
    title = "No such conversation"


class ConversationTooLong(AppError):
    code = "conversation_too_long"
    status = 400
    title = "The conversation is too long"


class ChatNotFound(NotFound):
    code = "chat_not_found"
    title = "No such chat"


class InstructionsNotFound(NotFound):
    code = "instructions_not_found"
    title = "No such instructions"


class InstructionsInUse(AppError):
    code = "instructions_in_use"
    status = 409
    title = "Other instructions follow these"


class ComparisonNotFound(NotFound):
    code = "comparison_not_found"
    title = "No such comparison"


class ComparisonPending(AppError):
    code = "comparison_pending"
    status = 409
    title = "The comparison has pending results"


class BatchEnded(AppError):
    code = "batch_ended"
    status = 409
    title = "The batch has ended"


class BatchNotEnded(AppError):
    code = "batch_not_ended"
    status = 409
    title = "The batch it belongs to has not ended"


class LineDefective(AppError):
    """How a batch's line ends that the service itself failed on."""

    code = "line_defective"
    status = 409
    title = "The line was never made into a prompt"


class IdempotencyMismatch(AppError):
    code = "idempotency_mismatch"
    status = 422
    title = "The Idempotency-Key was used for another request"


class ResultPending(AppError):
    code = "result_pending"
    status = 409
    title = "The result is not final yet"


class ContextInUse(AppError):
    code = "context_in_use"
    status = 409
    title = "Results of this context are pending"


class Removed(AppError):
    code = "removed"
    status = 410
    title = "It was here and has been removed"


class SpoolFull(AppError):
    code = "spool_full"
    status = 503
    title = "There is no room for the upload now"


class BodiesFull(AppError):
    code = "bodies_full"
    status = 503
    title = "There is no room for the body now"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"
    title = "The request asks for something the service cannot do"


class NoChatTemplate(AppError):
    code = "no_chat_template"
    status = 400
    title = "The model has no chat template"


class NoTokenizer(AppError):
    code = "no_tokenizer"
    status = 400
    title = "The model's tokenizer is not here"


class ChatTemplateRefused(AppError):
    code = "chat_template_refused"
    status = 400
    title = "The model's chat template does not take this chat"


class ChatTemplateBroken(AppError):
    code = "chat_template_broken"
    status = 500
    title = "The model's chat template cannot be used"


class ServiceStopping(AppError):
    code = "service_stopping"
    status = 503
    title = "This process is stopping"


class StreamRestarted(AppError):
    code = "stream_restarted"
    status = 409
    title = "The generation was begun anew and says something else"


class StreamExpired(AppError):
    code = "stream_expired"
    status = 410
    title = "The events of this stream were removed"


class QueryTooSlow(AppError):
    code = "query_too_slow"
    status = 503
    title = "Looking for this took too long"

    def __init__(self) -> None:
        super().__init__(
            "Postgres did not find this within its time limit and was stopped: there is too much to look through, or "
            "it has too much else to do. Ask for less: a shorter time, by created_after and created_before where the "
            "list takes them, or one filter instead of several.",
            # Asked again as it was, it would take as long.
            headers={"x-should-retry": "false"},
        )


class DatabaseUnavailable(AppError):
    code = "database_unavailable"
    status = 503
    title = "The database cannot serve requests now"

    def __init__(self, *, stored_nothing: bool = False) -> None:
        outcome = (
            "Nothing of this request was stored; send it again."
            if stored_nothing
            else "It was lost in the middle of this request, which may have been stored: look for it by its "
            "client_reference, or send it again with the Idempotency-Key it had."
        )
        super().__init__(f"Postgres cannot serve requests at the moment. {outcome}", headers={"Retry-After": "2"})
